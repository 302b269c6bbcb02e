"""Converting checkpoints once, to load them fast: see checkpoints/README.md."""
