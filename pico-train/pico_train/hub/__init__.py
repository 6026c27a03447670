"""Checkpoints for other people: model card, export, push to the Hugging Face hub."""
