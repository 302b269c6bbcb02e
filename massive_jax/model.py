"""`Model`: a module, its parameters and what makes its input behind one call.

Everything it does can be had without it: `model.module.apply({"params": model.params, "edits": E}, tokens, …)` with
collections from `massive_jax.probe`. Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.arguments import several, shown, yes_or_no
from massive_jax.files import short_name
from massive_jax.inputs.tokenizer import Tokenizer
from massive_jax.models import LanguageModel, TransformerConfig, VisionConfig, VisionTransformer
from massive_jax.models.vision_config import CHANNELS
from massive_jax.parallel import mesh_of_params, mesh_set
from massive_jax.probe import (
    RULES,
    Capture,
    CapturePlan,
    Edit,
    EditCollection,
    check_edits,
    check_plan,
    compile_captures,
    compile_edits,
)

if TYPE_CHECKING:
    from massive_jax.generate import Generation
    from massive_jax.inputs.images import ImageProcessor
    from massive_jax.weights.source import Origin

_PADDED_TO = 64  # lengths of `tokenize_batch`
DELIMITERS = (".", "\n")  # the tokens that carry massive activations besides the first one (paper, section 2.2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    Attributes:
      logits: [B, T, V] float32, of an image [B, V]; None where they were not asked for, or there is no head. Zeros at
        padding, as everywhere.
      last_hidden: [B, T, D], after the final norm, where there is one: Hugging Face's `last_hidden_state`.
      intermediates: site -> tensor or `Stats`; per-layer sites have a leading axis of the layers asked for.
      pooled: an image's one feature [B, W], which a head reads; None of a language model.
    """

    logits: jax.Array | None
    last_hidden: jax.Array
    intermediates: dict[str, Any]
    pooled: jax.Array | None = None


def forward(
    module: LanguageModel | VisionTransformer,
    params: Any,
    edits: EditCollection,
    plan: CapturePlan,
    inputs: Any,
    logits: bool = True,
    positions: Any = None,
) -> Output:
    """The compiled forward pass: one program a shape of its arguments, whatever the edits, layers and positions are.

    `positions`, int [B, T], are those of `own_positions`; None for a batch without padding.
    """
    with mesh_set(mesh_of_params(params, edits, inputs)):
        return _forward(module, params, edits, plan, inputs, positions, logits)


@functools.partial(jax.jit, static_argnames=("module", "logits"))
def _forward(
    module: LanguageModel | VisionTransformer,
    params: Any,
    edits: EditCollection,
    plan: CapturePlan,
    inputs: jax.Array,
    positions: jax.Array | None,
    logits: bool,
) -> Output:
    padded: dict[str, Any] = {} if positions is None else {"positions": positions}
    (out, hidden, *pooled), sown = module.apply(
        {"params": params, "edits": edits}, inputs, capture=plan, logits=logits, mutable=["intermediates"], **padded
    )
    return Output(out, hidden, dict(sown.get("intermediates", {})), *pooled)


def left_pad(
    sequences: Sequence[Sequence[int] | np.ndarray], pad: int = 0, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of different lengths as one batch, padded in front.

    Args:
      sequences: token ids, at least one in each.
      pad: the id that pads; it makes no difference.
      length: T; None for that of the longest.

    Returns:
      int32 [B, T] and bool [B, T], False for padding.

    Raises:
      ValueError: no sequences; one that is empty or longer than `length`.
    """
    longest = max(map(len, sequences), default=0)
    T = longest if length is None else length
    if not sequences or longest > T:
        raise ValueError(f"{len(sequences)} sequences of up to {longest} tokens do not fit a batch of length {T}.")
    tokens, mask = np.full((len(sequences), T), pad, np.int32), np.zeros((len(sequences), T), bool)
    for row, ids in enumerate(sequences):
        if len(ids) == 0:
            raise ValueError(f"sequence {row} is empty.")
        tokens[row, T - len(ids) :], mask[row, T - len(ids) :] = ids, True
    return tokens, mask


def own_positions(mask: Any) -> Any:
    """The position of every token in its own sequence: bool mask [B, T] -> int32 [B, T], -1 for padding."""
    xp = jnp if isinstance(mask, jax.Array) else np
    return xp.where(mask, xp.cumsum(mask, axis=1, dtype=np.int32) - 1, np.int32(-1))


def longest_sequence(mask: Any, shape: tuple[int, ...]) -> int:
    """Tokens of the longest sequence (1 where a jax transform hides it); ValueError for a mask not bool of `shape`."""
    if not isinstance(mask, np.ndarray | jax.Array):
        mask = np.asarray(mask)
    if mask.shape != tuple(shape) or mask.dtype != bool:
        raise ValueError(f"mask is {mask.dtype}{list(mask.shape)}; give bool{list(shape)}, as the tokens.")
    if isinstance(mask, jax.core.Tracer):
        return 1
    lengths = np.asarray(mask).sum(axis=1)
    if not lengths.all():
        raise ValueError(f"mask is False in all of sequence {lengths.argmin()}: there is nothing to run.")
    return int(lengths.max())


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A language or vision model ready to be called.

    Attributes:
      module: the Flax module, for pure-functional use.
      params: its parameters.
      config: its options.
      tokenizer: None where the checkpoint has none.
      name: what it was loaded as, for results.
      processor: of images; None where the checkpoint has none.
      origin: where the parameters come from; None where that is not known.
    """

    module: LanguageModel | VisionTransformer
    params: Any
    config: TransformerConfig | VisionConfig
    tokenizer: Tokenizer | None = None
    name: str = "model"
    processor: ImageProcessor | None = None
    origin: Origin | None = None

    def __call__(
        self,
        inputs: Any,
        *,
        mask: Any = None,
        capture: Capture | Sequence[Capture] | CapturePlan | None = None,
        edits: Edit | Sequence[Edit] | EditCollection | None = None,
        logits: bool = True,
    ) -> Output:
        """Runs the model.

        Args:
          inputs: tokens, int [B, T]; of a vision model images, float32 [B, height, width, 3], from `preprocess`.
          mask: bool [B, T], False for padding, which may be anywhere (`tokenize_batch` makes one); None for none. Each
            sequence gives what it gives by itself: positions are its own, and padding holds zeros.
          capture: what to keep of the forward pass.
          edits: interventions, in order; or already compiled.
          logits: whether to compute the logits.

        Raises:
          ValueError: tokens that are not int [B, T], empty, longer than the context, or outside the vocabulary; images
            of the wrong shape or dtype, not finite, or of a size that the model does not take; a mask of another shape
            or dtype, or of images; see `Capture` and `Edit` for theirs. Raised before anything is compiled.
        """
        inputs, positions = self.check_inputs(inputs, mask)
        logits, compiled = yes_or_no("logits", logits), self.compile_edits(edits, inputs, mask)
        return forward(self.module, self.params, compiled, self.compile_captures(capture), inputs, logits, positions)

    @property
    def title(self) -> str:
        """Its name without the directories, where it was loaded by a path."""
        return short_name(self.name)

    def generate(self, tokens: Any, **options: Any) -> Generation:
        """Continues prompts, int [B, T]: see `massive_jax.generate.generate` for the options."""
        from massive_jax.generate import generate

        return generate(self, tokens, **options)

    def tokenize(self, text: str | Sequence[str], bos: bool = False) -> np.ndarray:
        """Token ids of one text or several of equal length: int32 [B, T]. No special token unless `bos`.

        Raises:
          ValueError: no tokenizer; an empty text; texts of different lengths; `bos` where the tokenizer has none.
        """
        self.require_language()
        tokenizer = self.require_tokenizer()
        texts = (text,) if isinstance(text, str) else several(text)
        if texts is None or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"text is {shown(text)}; give a text, or several in a list.")
        prefix = [self.bos_id()] if bos else []
        rows = [prefix + tokenizer.encode(t) for t in texts]
        if not rows or not all(len(row) > bos for row in rows):
            raise ValueError("the text has no tokens; give a text that is not empty.")
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise ValueError(f"the texts have {lengths} tokens; a batch needs texts of one length.")
        return np.asarray(rows, np.int32)

    def tokenize_batch(self, texts: Sequence[str], bos: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of texts of any lengths, padded in front, and the mask that goes with them.

        Args:
          texts: one text or more.
          bos: puts a BOS token in front of each.

        Returns:
          int32 [B, T] and bool [B, T], False for padding. T is a multiple of 64, or the model's context, so that many
          batches share few compiled programs.

        Raises:
          ValueError: as `tokenize`; a text that is longer than the context. The message says which.
        """
        context = self.require_language().context_length
        if not isinstance(texts, str | Sequence) or not texts:
            raise ValueError(f"there are no texts in {texts!r}; give a list of them.")
        rows = []
        for i, text in enumerate([texts] if isinstance(texts, str) else texts):
            try:
                rows.append(self.tokenize(text, bos)[0])
            except ValueError as error:
                raise ValueError(f"text {i}: {error}") from None
            if len(rows[i]) > context:
                raise ValueError(
                    f"text {i} has {len(rows[i])} tokens, more than the model's context of {context}; shorten it or "
                    "use windows."
                )
        longest = max(map(len, rows))
        return left_pad(rows, length=min(-(-longest // _PADDED_TO) * _PADDED_TO, context))

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

    def preprocess(self, images: Any, size: int | None = None) -> np.ndarray:
        """Images as the checkpoint wants them: float32 [B, height, width, 3].

        Args:
          images: an image (PIL, or an array uint8 [height, width, 3]), a path, or a list of these.
          size: side of the result, in pixels, in place of the checkpoint's.

        Raises:
          ValueError: not a vision model; the checkpoint does not say how; not an image (see `ImageProcessor`).
        """
        return self.require_processor()(images, size)

    def require_processor(self) -> ImageProcessor:
        """The preprocessing of images; ValueError where the checkpoint does not say how, or is a language model."""
        self.require_vision()
        if self.processor is None:
            raise ValueError(
                f"{self.name}: the checkpoint has no preprocessor_config.json; add it, or give images float32 "
                "[batch, height, width, 3], normalised as the model was trained."
            )
        return self.processor

    def require_language(self) -> TransformerConfig:
        """The config of a language model; ValueError for a vision model."""
        if not isinstance(self.config, TransformerConfig):
            raise ValueError(f"{self.name} is a vision model: it takes images, not tokens; see `preprocess`.")
        return self.config

    def require_vision(self) -> VisionConfig:
        """The config of a vision model; ValueError for a language model."""
        if not isinstance(self.config, VisionConfig):
            raise ValueError(f"{self.name} is a language model: it takes tokens, not images; see `tokenize`.")
        return self.config

    def token_texts(self, inputs: Any) -> list[str]:
        """What each token of one input is called, for labels: T strings.

        Of a sequence int [T] the tokens' texts, or ids where there is no tokenizer; of an image [height, width, 3] CLS,
        reg1, … and the (row,column) of each patch.
        """
        if isinstance(self.config, VisionConfig):
            return self.config.token_names(*np.shape(inputs)[:2])
        ids = [int(i) for i in np.asarray(inputs)]
        return [self.tokenizer.token_text(i) if self.tokenizer else str(i) for i in ids]

    def check_inputs(self, inputs: Any, mask: Any = None) -> tuple[Any, Any]:
        """`inputs` as an array that this model can take, and `own_positions`; see `__call__` for the errors."""
        if isinstance(self.config, VisionConfig):
            if mask is not None:
                raise ValueError("a mask is for tokens: images have no padding.")
            return self.check_images(inputs), None
        tokens = self.check_tokens(inputs, mask)
        return tokens, None if mask is None else own_positions(mask)

    def check_images(self, images: Any) -> Any:
        """`images` as an array float32 [B, height, width, 3] that this model can take; see `__call__`."""
        config = self.require_vision()
        if not isinstance(images, jax.core.Tracer):
            images = _array("images", images)
        if images.ndim != 4 or images.shape[-1] != CHANNELS or images.dtype != np.float32:
            raise ValueError(
                f"images are {images.dtype}{list(images.shape)}; give float32 [batch, height, width, {CHANNELS}], as "
                "`preprocess` makes them."
            )
        (height, width), side = images.shape[1:3], config.patch_size
        native = (height, width) == config.image_size
        if 0 in images.shape:
            raise ValueError(f"images have shape {list(images.shape)}: there is nothing to run.")
        if not native and (height % side or width % side):
            raise ValueError(f"images of {height} × {width} pixels do not divide into patches of {side} × {side}.")
        if not native and config.position == "learned" and config.interpolation is None:
            only = " × ".join(map(str, config.image_size))
            raise ValueError(
                f"images of {height} × {width} pixels: without interpolation this model takes only {only}."
            )
        if isinstance(images, np.ndarray) and not np.isfinite(images).all():
            raise ValueError("images hold values that are NaN or infinite.")
        return images

    def check_tokens(self, tokens: Any, mask: Any = None) -> Any:
        """`tokens` as an array int [B, T] that this model can take, 0 at padding; see `__call__` for the errors."""
        config = self.require_language()
        if not isinstance(tokens, jax.core.Tracer):
            tokens = _array("tokens", tokens)
        if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"tokens are {tokens.dtype}{list(tokens.shape)}; give integers [batch, position].")
        if 0 in tokens.shape:
            raise ValueError(f"tokens have shape {list(tokens.shape)}: there is nothing to run.")
        longest = tokens.shape[1] if mask is None else longest_sequence(mask, tokens.shape)
        if longest > config.context_length:
            raise ValueError(
                f"{longest} tokens are more than the model's context of {config.context_length}; "
                "shorten the text or use windows."
            )
        if isinstance(tokens, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
            return tokens if mask is None else jnp.where(mask, tokens, 0)
        if mask is not None:
            tokens = np.where(mask, tokens, 0)  # whatever id pads
        if tokens.min() < 0 or tokens.max() >= config.vocab_size:
            raise ValueError(
                f"token ids from {tokens.min()} to {tokens.max()} do not fit the vocabulary of "
                f"{config.vocab_size} (ids 0 to {config.vocab_size - 1})."
            )
        return tokens.astype(np.int32)

    def compile_edits(
        self, edits: Edit | Sequence[Edit] | EditCollection | None, inputs: Any, mask: Any = None
    ) -> EditCollection:
        """`edits` as the `edits` collection for `inputs` (see `massive_jax.probe.compile_edits`)."""
        concrete = None if isinstance(inputs, jax.core.Tracer) else inputs
        sizes, absent = self.config.input_sizes(inputs.shape), self.config.absent_sites
        if isinstance(edits, Mapping):
            return check_edits(edits, sizes, absent, mask)
        return compile_edits(edits, sizes, concrete, self.rules(), absent, self.config.jnp_dtype, mask)

    def compile_captures(self, capture: Capture | Sequence[Capture] | CapturePlan | None) -> CapturePlan:
        """`capture` as a plan for this model (see `massive_jax.probe.compile_captures`)."""
        num_layers, absent = self.config.num_layers, self.config.absent_sites
        if isinstance(capture, CapturePlan):
            return check_plan(capture, num_layers, absent)
        return compile_captures(capture, num_layers, absent)

    def rules(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        """The position rules that an `Edit` may name."""
        if isinstance(config := self.config, VisionConfig):
            return {**RULES, "last": lambda x: np.full(len(x), config.num_tokens(*x.shape[1:3]) - 1, np.int32)}
        return {**RULES, "first_delimiter": self.first_delimiter}

    def first_delimiter(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Position of the first "." or newline token after position 0 in every sequence; -1 for none. [B, T] -> [B]."""
        if mask is not None:
            return np.concatenate([self.first_delimiter(row[own][None]) for row, own in zip(tokens, mask, strict=True)])
        tokenizer = self.require_tokenizer()
        ids = [int(i) for i in np.unique(tokens) if tokenizer.token_text(int(i)).strip(" ") in DELIMITERS]
        found = np.isin(tokens, ids)
        found[:, 0] = False
        return np.where(found.any(axis=1), found.argmax(axis=1), -1).astype(np.int32)


def _array(name: str, given: Any) -> np.ndarray:
    """Gives `given` as an array; ValueError where its rows have different lengths."""
    try:
        return np.asarray(given)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {shown(given)}, which is no array: its rows must have one length.") from None
