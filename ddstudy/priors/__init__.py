"""What is fitted: shapes, sizes and random starts of the priors."""
