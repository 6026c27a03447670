"""The ways out for numbers: metrics.jsonl, console, trackers, model FLOPs utilisation."""
