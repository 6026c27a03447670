"""Checkpoints for other people: model card, export, and push to the Hugging Face hub."""
