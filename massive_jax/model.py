"""`Model`: a module, its parameters and its tokenizer behind one call.

Everything it does can be had without it: `model.module.apply({"params": model.params, "edits": E}, tokens, …)` with
collections from `massive_jax.probe`. Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from massive_jax.models import LanguageModel, TransformerConfig
from massive_jax.probe import (
    RULES,
    Capture,
    CapturePlan,
    Edit,
    EditCollection,
    compile_captures,
    compile_edits,
)
from massive_jax.weights.tokenizer import Tokenizer

if TYPE_CHECKING:
    from massive_jax.generate import Generation

DELIMITERS = (".", "\n")  # the tokens that carry massive activations besides the first one (paper, section 2.2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    Attributes:
      logits: [B, T, V] float32; None where they were not asked for.
      last_hidden: [B, T, D], after the final norm.
      intermediates: site -> tensor or `Stats`; per-layer sites have a leading axis of the layers asked for.
    """

    logits: jax.Array | None
    last_hidden: jax.Array
    intermediates: dict[str, Any]


@functools.partial(jax.jit, static_argnames=("module", "logits"))
def forward(
    module: LanguageModel,
    params: Any,
    edits: EditCollection,
    plan: CapturePlan,
    tokens: jax.Array,
    logits: bool = True,
) -> Output:
    """The compiled forward pass: one program a shape of its arguments, whatever the edits and layers are."""
    (out, hidden), sown = module.apply(
        {"params": params, "edits": edits}, tokens, capture=plan, logits=logits, mutable=["intermediates"]
    )
    return Output(out, hidden, dict(sown.get("intermediates", {})))


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A language model ready to be called.

    Attributes:
      module: the Flax module, for pure-functional use.
      params: its parameters.
      config: its options.
      tokenizer: None where the checkpoint has none.
      name: what it was loaded as, for results.
    """

    module: LanguageModel
    params: Any
    config: TransformerConfig
    tokenizer: Tokenizer | None = None
    name: str = "model"

    def __call__(
        self,
        tokens: Any,
        *,
        capture: Capture | Sequence[Capture] | CapturePlan | None = None,
        edits: Edit | Sequence[Edit] | EditCollection | None = None,
        logits: bool = True,
    ) -> Output:
        """Runs the model.

        Args:
          tokens: int [B, T].
          capture: what to keep of the forward pass.
          edits: interventions, in order; or already compiled.
          logits: whether to compute the logits.

        Raises:
          ValueError: tokens that are not int [B, T], empty, longer than the context, or outside the vocabulary; see
            `Capture` and `Edit` for theirs. Raised before anything is compiled.
        """
        tokens = self.check_tokens(tokens)
        return forward(
            self.module, self.params, self.compile_edits(edits, tokens), self.compile_captures(capture), tokens, logits
        )

    def generate(self, tokens: Any, **options: Any) -> Generation:
        """Continues prompts, int [B, T]: see `massive_jax.generate.generate` for the options."""
        from massive_jax.generate import generate

        return generate(self, tokens, **options)

    def tokenize(self, text: str | Sequence[str], bos: bool = False) -> np.ndarray:
        """Token ids of one text or several of equal length: int32 [B, T]. No special token unless `bos`.

        Raises:
          ValueError: no tokenizer; an empty text; texts of different lengths; `bos` where the tokenizer has none.
        """
        tokenizer = self.require_tokenizer()
        texts = [text] if isinstance(text, str) else list(text)
        prefix = [self.bos_id()] if bos else []
        rows = [prefix + tokenizer.encode(t) for t in texts]
        if not rows or not all(len(row) > bos for row in rows):
            raise ValueError("the text has no tokens; give a text that is not empty.")
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise ValueError(f"the texts have {lengths} tokens; a batch needs texts of one length.")
        return np.asarray(rows, np.int32)

    def bos_id(self) -> int:
        """Id of the beginning-of-sequence token; ValueError where the tokenizer has none."""
        bos = self.require_tokenizer().bos_id
        if bos is None:
            raise ValueError(f"{self.name}: the tokenizer has no BOS token; run without it.")
        return bos

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer; ValueError where the checkpoint has none."""
        if self.tokenizer is None:
            raise ValueError(f"{self.name}: the checkpoint has no tokenizer; give token ids, or add tokenizer.json.")
        return self.tokenizer

    def token_texts(self, tokens: Any) -> list[str]:
        """Text of each token of one sequence, for labels; the id where there is no tokenizer. int [T] -> T strings."""
        ids = [int(i) for i in np.asarray(tokens)]
        return [self.tokenizer.token_text(i) if self.tokenizer else str(i) for i in ids]

    def check_tokens(self, tokens: Any) -> Any:
        """`tokens` as an array int [B, T] that this model can take; see `__call__` for the errors."""
        if not isinstance(tokens, jax.core.Tracer):
            tokens = np.asarray(tokens)
        if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"tokens are {tokens.dtype}{list(tokens.shape)}; give integers [batch, position].")
        if 0 in tokens.shape:
            raise ValueError(f"tokens have shape {list(tokens.shape)}: there is nothing to run.")
        if tokens.shape[1] > self.config.context_length:
            raise ValueError(
                f"{tokens.shape[1]} tokens are more than the model's context of {self.config.context_length}; "
                "shorten the text or use windows."
            )
        if isinstance(tokens, jax.core.Tracer):
            return tokens
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise ValueError(
                f"token ids from {tokens.min()} to {tokens.max()} do not fit the vocabulary of "
                f"{self.config.vocab_size} (ids 0 to {self.config.vocab_size - 1})."
            )
        return tokens.astype(np.int32)

    def compile_edits(self, edits: Edit | Sequence[Edit] | EditCollection | None, tokens: Any) -> EditCollection:
        """`edits` as the `edits` collection for `tokens` [B, T] (see `massive_jax.probe.compile_edits`)."""
        if isinstance(edits, Mapping):
            return edits
        concrete = None if isinstance(tokens, jax.core.Tracer) else tokens
        sizes, absent = self.config.sizes(*tokens.shape), self.config.absent_sites
        return compile_edits(edits or (), sizes, concrete, self.rules(), absent)

    def compile_captures(self, capture: Capture | Sequence[Capture] | CapturePlan | None) -> CapturePlan:
        """`capture` as a plan for this model (see `massive_jax.probe.compile_captures`)."""
        return (
            capture
            if isinstance(capture, CapturePlan)
            else compile_captures(capture, self.config.num_layers, self.config.absent_sites)
        )

    def rules(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        """The position rules that an `Edit` may name."""
        return {**RULES, "first_delimiter": self.first_delimiter}

    def first_delimiter(self, tokens: np.ndarray) -> np.ndarray:
        """Position of the first "." or newline token after position 0 in every sequence; -1 for none. [B, T] -> [B]."""
        tokenizer = self.require_tokenizer()
        ids = [int(i) for i in np.unique(tokens) if tokenizer.token_text(int(i)).strip(" ") in DELIMITERS]
        found = np.isin(tokens, ids)
        found[:, 0] = False
        return np.where(found.any(axis=1), found.argmax(axis=1), -1).astype(np.int32)
