"""Text input: sources and windows."""

from massive_jax.data.text import DATASETS, load_text
from massive_jax.data.windows import Windows, cut_windows

__all__ = ["DATASETS", "Windows", "cut_windows", "load_text"]
