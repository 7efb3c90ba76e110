"""What is asked: axes and settings with their identities, and the study file."""
