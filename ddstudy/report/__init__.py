"""The report: a study as tables, the tables as figures, the figures as one HTML page."""
