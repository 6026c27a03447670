"""Data: sources, tokenizers, packed rows, and the order in which training reads them."""
