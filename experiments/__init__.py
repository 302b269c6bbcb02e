"""Experiments: thin binaries. `python -m experiments.NAME --help` says everything about each."""
