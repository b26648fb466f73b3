"""A copy-paste playground for language-model experiments with plotting tools."""

__version__ = "0.1.0"
