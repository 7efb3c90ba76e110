"""Tasks: how a measurement y = A x + e comes from an image x, and what reconstructions are judged against."""
