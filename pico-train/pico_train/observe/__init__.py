"""Observation while training: probe, hooks, snapshots, observers of other packages."""
