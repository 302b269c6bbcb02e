"""The address that `massive_jax.inputs.tokenizer` had before; kept for scripts that import from here."""

from massive_jax.inputs.tokenizer import Tokenizer, has_tokenizer

__all__ = ["Tokenizer", "has_tokenizer"]
