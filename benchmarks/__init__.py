"""Benchmarks: this project and its peers on the same work, in one run. Timings are ratios; the machine may be noisy."""
