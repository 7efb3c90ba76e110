"""Which fits and when: a fit's results, stability, samplers, and the loop with its plan and forecast."""
