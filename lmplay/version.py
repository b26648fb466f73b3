"""The version of lmplay."""

__version__ = "0.1.0"
