"""The state of a run at a step: captured, saved, loaded, retained, and the disk space for it."""
