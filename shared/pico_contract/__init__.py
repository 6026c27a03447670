"""The on-disk contract between pico-train and pico-analyze (see CONTRACT.md)."""

__version__ = "0.1.0"
