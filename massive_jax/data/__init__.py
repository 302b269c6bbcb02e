"""Text input: sources and windows."""

from massive_jax.data.text import BUILT_IN, DATASETS, load_text
from massive_jax.data.windows import Windows, cut_windows

__all__ = ["BUILT_IN", "DATASETS", "Windows", "cut_windows", "load_text"]
