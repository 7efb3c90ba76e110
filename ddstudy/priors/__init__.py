"""What is fitted: networks whose structure alone is the prior, each of one protocol (`base.Prior`)."""
