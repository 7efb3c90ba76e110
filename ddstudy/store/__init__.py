"""What is kept: databases, leases, trials as rows of Optuna's tables; a study to look at and one to write."""
