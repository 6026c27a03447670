"""Learning dynamics of language models from their checkpoints and snapshots."""
