"""Data: sources, tokenizers, packed rows, and the order in which they are read."""
