"""Train small language models and observe them while they learn."""
