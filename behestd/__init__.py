"""The behest runtime daemon for agents."""

__version__ = "0.1.0"
