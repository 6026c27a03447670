"""What is looked at while training: probe, hooks, snapshots, observers of other packages."""
