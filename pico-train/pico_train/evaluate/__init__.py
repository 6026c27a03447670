"""Evaluation of checkpoints, in process."""
