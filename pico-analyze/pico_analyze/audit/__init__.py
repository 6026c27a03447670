"""Integrity of a run on disk."""
