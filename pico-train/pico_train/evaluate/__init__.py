"""Evaluation of checkpoints, in process. `tasks.py` is the way in."""
