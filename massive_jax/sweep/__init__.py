"""Sweeps: a metric of the output under each of many interventions, by one program that leaves out what they share."""

from massive_jax.sweep.grid import EditGrid, EditUnits
from massive_jax.sweep.metrics import METRICS, metric_function
from massive_jax.sweep.run import Sweep, sweep

__all__ = ["METRICS", "EditGrid", "EditUnits", "Sweep", "metric_function", "sweep"]
