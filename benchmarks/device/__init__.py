"""One prepared run for whoever has an accelerator for some minutes: `python -m benchmarks.device --help`.

It needs jax, flax, optax and absl only. Sections with PyTorch need torch (and transformers), the picture matplotlib;
what is missing is said, and the section left out.
"""
