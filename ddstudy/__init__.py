"""ddstudy: hyperparameter studies of the Deep Decoder on MR images."""

from importlib.metadata import version

__version__ = version("ddstudy")
