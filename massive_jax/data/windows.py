"""Cutting a text into windows of tokens. Axis letters: see `massive_jax.probe.sites`; W windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from massive_jax.arguments import whole_number, yes_or_no
from massive_jax.model import Model, TextModel


@dataclasses.dataclass(frozen=True)
class Windows:
    """Holds consecutive, non-overlapping runs of tokens.

    Attributes:
      tokens: int32 [W, T]; with `bos`, T = context + 1.
      context: tokens of text in a window, in the longest one.
      bos: whether every window starts with the BOS token.
      mask: bool [W, T], False for padding; None for none.
    """

    tokens: np.ndarray
    context: int
    bos: bool
    mask: np.ndarray | None = None

    @property
    def inputs(self) -> np.ndarray:
        """Gives the tokens: what a model takes."""
        return self.tokens

    @property
    def lengths(self) -> np.ndarray:
        """Counts the tokens of each window: int [W]."""
        W, T = self.tokens.shape
        return np.full(W, T) if self.mask is None else self.mask.sum(axis=1)

    @property
    def num_predicted(self) -> int:
        """Counts the tokens predicted: all but the first of each window (with BOS, all tokens of the text)."""
        return int((self.lengths - 1).sum())

    def rows(self, which: slice) -> np.ndarray | None:
        """Gives the mask of some of the windows."""
        return None if self.mask is None else self.mask[which]


def text_windows(model: Model, texts: Sequence[str], *, bos: bool = False) -> Windows:
    """Tokenises each of `texts`, of any lengths, as one window.

    Raises:
      ValueError: as `Model.tokenize_batch`.
    """
    tokens, mask = model.tokenize_batch(texts, bos=bos)
    return Windows(tokens, int(mask.sum(axis=1).max()) - bos, bos, mask)


def cut_windows(
    model: Model, text: str, *, context: int, windows: int | None = None, bos: bool = False, tokens: int = 1
) -> Windows:
    """Tokenises `text` whole, without special tokens, and cuts it from its start into windows.

    Args:
      model: whose tokenizer and context length count.
      text: the text.
      context: tokens of text in a window.
      windows: how many; None for as many as the text fills.
      bos: puts a BOS token in front of each.
      tokens: fewest tokens a window may have (2 for perplexity, which predicts from the second on).

    Raises:
      ValueError: an argument of a wrong type; a context below `tokens` or above the model's; a text shorter than the
        windows asked for; no tokenizer, no BOS token.

    Examples:
      >>> from massive_jax.data import cut_windows, load_text
      >>> cut_windows(model, load_text("python"), windows=4, context=128).tokens.shape
      (4, 128)
    """
    language = TextModel.of(model)
    context, tokens = whole_number("context", context), whole_number("tokens", tokens)
    windows = None if windows is None else whole_number("windows", windows)
    prefix = [language.bos_id()] if yes_or_no("bos", bos) else []
    if context + len(prefix) < tokens or context < 1:
        raise ValueError(f"a context of {context} tokens is too short; at least {max(1, tokens - len(prefix))}.")
    if context + len(prefix) > language.config.context_length:
        raise ValueError(
            f"a context of {context} tokens{' and BOS' if bos else ''} is longer than the model's "
            f"{language.config.context_length}."
        )
    if windows is not None and windows < 1:
        raise ValueError(f"{windows} windows: at least one is needed.")
    ids = np.asarray(language.encode(text), np.int32)
    available = len(ids) // context
    if available < (windows or 1):
        raise ValueError(
            f"the text has {len(ids)} tokens, enough for {available} windows of {context}; {windows or 1} are needed. "
            "Give a longer text, or a smaller context or number of windows."
        )
    count = windows or available
    cut = ids[: count * context].reshape(count, context)
    front = np.tile(np.asarray(prefix, np.int32), (count, 1))
    return Windows(np.concatenate([front, cut], axis=1), context, bos)
