"""Numbers on their way out: metrics.jsonl, console, trackers, model FLOPs utilisation."""
