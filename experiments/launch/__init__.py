"""Starts an experiment on TPU VMs, a GKE cluster, a Slurm cluster or in a container: `python -m experiments.launch`."""
