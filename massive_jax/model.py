"""`Model`: a module, its parameters and what makes its input behind one call; its two faces, text and images.

Everything it does can be had without it: `model.module.apply({"params": model.params, "edits": E}, tokens, …)` with
collections from `massive_jax.probe`. Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import numpy as np

from massive_jax.arguments import several, shown, yes_or_no
from massive_jax.attribution import Attribution, logit_attribution
from massive_jax.cards import CardTable
from massive_jax.files import short_name
from massive_jax.forward import Output, check_images, check_tokens, forward, left_pad, own_positions
from massive_jax.generate import Generation, generate
from massive_jax.gradients import Gradients, Metric, gradient
from massive_jax.inputs.tokenizer import Tokenizer
from massive_jax.lens import Lens, final_norm, head_patterns, logit_lens, unembed
from massive_jax.model_card import html_card, model_card, site_table
from massive_jax.models import BlockConfig, LanguageModel, TransformerConfig, VisionConfig, VisionTransformer, build
from massive_jax.probe import (
    RULES,
    CapturePlan,
    Captures,
    Edit,
    EditCollection,
    check_edits,
    check_plan,
    compile_captures,
    compile_edits,
)
from massive_jax.sweep import EditUnits, Sweep, sweep

if TYPE_CHECKING:
    from massive_jax.inputs.images import ImageProcessor
    from massive_jax.nnx_bridge import NnxModel
    from massive_jax.weights.source import Origin

_PADDED_TO = 64  # lengths of `tokenize_batch`
DELIMITERS = (".", "\n")  # the tokens that carry massive activations besides the first one (paper, section 2.2)


class FaceError(ValueError, AttributeError):
    """Says that a model of one kind was asked for what those of the other kind have: images for tokens, say."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """Holds a language or vision model, ready to be called.

    It is made with the face that goes with its config: a `TextModel` or an `ImageModel`, which say what else it can do.
    Asking for what only the other one can do raises a ValueError that says so.

    Attributes:
      module: the Flax module, for pure-functional use.
      params: its parameters.
      config: its options.
      tokenizer: None where the checkpoint has none.
      name: what it was loaded as, for results.
      processor: of images; None where the checkpoint has none.
      origin: where the parameters come from; None where that is not known.

    Examples:
      >>> tokens = model.tokenize("Summer is warm.")
      >>> model.token_texts(tokens[0])
      ['Summer', ' is', ' warm', '.']
      >>> model(tokens).logits.shape
      (1, 4, 49152)
    """

    module: LanguageModel | VisionTransformer
    params: Any
    config: TransformerConfig | VisionConfig
    tokenizer: Tokenizer | None = None
    name: str = "model"
    processor: ImageProcessor | None = None
    origin: Origin | None = None

    kind: ClassVar[str] = "model"
    _takes: ClassVar[str] = "it takes tokens or images"  # for who asks it for something else
    _config: ClassVar[type] = BlockConfig

    if TYPE_CHECKING:  # of one face only; which one `load` gives, a type checker cannot know
        tokenize: ClassVar[Callable[..., np.ndarray]]
        tokenize_batch: ClassVar[Callable[..., tuple[np.ndarray, np.ndarray]]]
        generate: ClassVar[Callable[..., Generation]]
        unembed: ClassVar[Callable[..., jax.Array]]
        logit_lens: ClassVar[Callable[..., Lens]]
        logit_attribution: ClassVar[Callable[..., Attribution]]
        sweep: ClassVar[Callable[..., Sweep]]
        bos_id: ClassVar[Callable[..., int]]
        first_delimiter: ClassVar[Callable[..., np.ndarray]]
        check_tokens: ClassVar[Callable[..., Any]]
        preprocess: ClassVar[Callable[..., np.ndarray]]
        check_images: ClassVar[Callable[..., Any]]
    else:

        def __getattr__(self, name: str) -> Any:
            if any(hasattr(face, name) for face in (TextModel, ImageModel)):
                raise self._wrong_face()
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __new__(cls, module: Any = None, params: Any = None, config: Any = None, *_: Any, **more: Any) -> Model:
        """Makes it with the face that goes with `config`."""
        if cls is Model:
            cls = ImageModel if isinstance(config, VisionConfig) else TextModel
        if not issubclass(cls, TextModel | ImageModel):
            raise ValueError(
                f"{cls.__name__} is neither a TextModel nor an ImageModel; make it a class of one of them."
            )
        return object.__new__(cls)

    @classmethod
    def of(cls, model: Any) -> Self:
        """Gives `model`, which has to be a `Model`, or of the face that this is called on; ValueError otherwise."""
        if isinstance(model, cls):
            return model
        if isinstance(model, Model):
            raise model._wrong_face()
        raise ValueError(f"model is {shown(model)}; give a Model, such as massive_jax.load returns.")

    def _wrong_face(self) -> FaceError:
        return FaceError(f"{self.name} is a {self.kind}: {self._takes}.")

    def __call__(
        self,
        inputs: Any,
        *,
        mask: Any = None,
        capture: Captures | CapturePlan | None = None,
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

    def __repr__(self) -> str:
        return model_card(self)

    def _repr_html_(self) -> str:
        return html_card(self)

    def sites(self) -> CardTable:
        """Gives the table of what can be captured and edited: name, axes, shape and meaning of every site."""
        return site_table(self.config)

    @property
    def title(self) -> str:
        """Gives its name without the directories, where it was loaded by a path."""
        return short_name(self.name)

    def with_params(self, config: TransformerConfig | VisionConfig, params: Any) -> Self:
        """Gives this model with other parameters, and the config that they go with: of the same kind."""
        return dataclasses.replace(self, module=build(config), params=params, config=config)

    def to_nnx(self) -> NnxModel:
        """Gives this model as a module of Flax's NNX, which shares its arrays: `massive_jax.nnx_bridge.NnxModel`."""
        from massive_jax.nnx_bridge import to_nnx

        return to_nnx(self.module, self.params)

    def from_nnx(self, module: Any) -> Self:
        """Gives this model with the parameters of what `to_nnx` made, trained perhaps; ValueError where they differ."""
        from massive_jax.nnx_bridge import params_of

        return self.with_params(self.config, params_of(module, self.params))

    def compile_edits(
        self, edits: Edit | Sequence[Edit] | EditCollection | None, inputs: Any, mask: Any = None
    ) -> EditCollection:
        """Gives `edits` as the `edits` collection for `inputs` (see `massive_jax.probe.compile_edits`)."""
        concrete = None if isinstance(inputs, jax.core.Tracer) else inputs
        sizes, absent = self.config.input_sizes(inputs.shape), self.config.absent_sites
        if isinstance(edits, Mapping):
            return check_edits(edits, sizes, absent, mask, self.config.jnp_dtype)
        return compile_edits(edits, sizes, concrete, self.rules(), absent, self.config.jnp_dtype, mask)

    def compile_captures(self, capture: Captures | CapturePlan | None) -> CapturePlan:
        """Gives `capture` as a plan for this model (see `massive_jax.probe.compile_captures`)."""
        num_layers, absent = self.config.num_layers, self.config.absent_sites
        if isinstance(capture, CapturePlan):
            return check_plan(capture, num_layers, absent)
        return compile_captures(capture, num_layers, absent)

    def final_norm(self, x: Any) -> jax.Array:
        """Gives what the final norm makes of a residual stream, [..., D] (see `massive_jax.lens.final_norm`)."""
        return final_norm(self.config, self.params, x)

    def head_patterns(self, inputs: Any, **options: Any) -> jax.Array:
        """Gives what heads attend to, [L', B, H', T, S]: see `massive_jax.lens.head_patterns` for the options."""
        return head_patterns(self, inputs, **options)

    def gradient(self, inputs: Any, metric: Metric, sites: str | Sequence[str], **options: Any) -> Gradients:
        """Gives gradients of a metric of the output by the tensors at sites: see `massive_jax.gradients.gradient`."""
        return gradient(self, inputs, metric, sites, **options)

    def check_inputs(self, inputs: Any, mask: Any = None) -> tuple[Any, Any]:
        """Gives `inputs` as an array that this model can take, and `own_positions`; see `__call__` for the errors."""
        raise NotImplementedError

    def token_texts(self, inputs: Any) -> list[str]:
        """Names each token of one input, for labels: T strings.

        Of a sequence int [T] the tokens' texts, or ids where there is no tokenizer; of an image [height, width, 3] CLS,
        reg1, … and the (row,column) of each patch.
        """
        raise NotImplementedError

    def rules(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        """Gives the position rules that an `Edit` may name."""
        raise NotImplementedError

    def input_words(self) -> str:
        """Says in a few words what the model is called with, and what is there to make it."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        if not isinstance(self.config, self._config):
            raise ValueError(f"config is {shown(self.config)}; give a {self._config.__name__}, as a {self.kind} has.")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TextModel(Model):
    """Holds a language model: a `Model` that takes tokens, which it makes of texts, and continues them.

    Its attributes are those of `Model`.
    """

    module: LanguageModel
    config: TransformerConfig

    kind: ClassVar[str] = "language model"
    _takes: ClassVar[str] = "it takes tokens, not images; see `tokenize`"
    _config: ClassVar[type] = TransformerConfig

    def generate(self, tokens: Any, **options: Any) -> Generation:
        """Continues prompts, int [B, T]: see `massive_jax.generate.generate` for the options."""
        return generate(self, tokens, **options)

    def unembed(self, x: Any) -> jax.Array:
        """Gives the logits of what the final norm gave: [..., D] -> float32 [..., V] (`massive_jax.lens.unembed`)."""
        return unembed(self.config, self.params, x)

    def logit_lens(self, tokens: Any, **options: Any) -> Lens:
        """Reads every layer's stream by the head: see `massive_jax.lens.logit_lens` for the options."""
        return logit_lens(self, tokens, **options)

    def logit_attribution(self, tokens: Any, target: Any = None, **options: Any) -> Attribution:
        """Splits a logit into what each part of the model adds to it: see `massive_jax.attribution`."""
        return logit_attribution(self, tokens, target, **options)

    def sweep(self, tokens: Any, edits: EditUnits, metric: str | Callable[..., Any], **options: Any) -> Sweep:
        """Measures a metric under each of many edits: see `massive_jax.sweep.sweep` for the options."""
        return sweep(self, tokens, edits, metric, **options)

    def tokenize(self, text: str | Sequence[str], bos: bool = False) -> np.ndarray:
        """Turns one text, or several of equal length, into token ids: int32 [B, T]. No special token unless `bos`.

        Raises:
          ValueError: no tokenizer; an empty text; texts of different lengths; `bos` where the tokenizer has none.
        """
        tokenizer = self._tokenizer()
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
        """Turns texts of any lengths into token ids, padded in front, and the mask that goes with them.

        Args:
          texts: one text or more.
          bos: puts a BOS token in front of each.

        Returns:
          int32 [B, T] and bool [B, T], False for padding. T is a multiple of 64, or the model's context, so that many
          batches share few compiled programs.

        Raises:
          ValueError: as `tokenize`; a text that is longer than the context. The message says which.

        Examples:
          >>> tokens, mask = model.tokenize_batch(["A short one.", "A text of another length."])
          >>> tokens.shape, mask.sum(axis=1).tolist()
          ((2, 64), [4, 6])
        """
        context = self.config.context_length
        given = (texts,) if isinstance(texts, str) else several(texts)
        if not given:
            raise ValueError(f"there are no texts in {shown(texts)}; give a list of them.")
        rows = []
        for i, text in enumerate(given):
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

    def encode(self, text: str) -> list[int]:
        """Gives the token ids of one text, without special tokens; ValueError where there is no tokenizer."""
        return self._tokenizer().encode(text)

    def bos_id(self) -> int:
        """Gives the id of the beginning-of-sequence token; ValueError where the tokenizer has none."""
        bos = self._tokenizer().bos_id
        if bos is None:
            raise ValueError(f"{self.name}: the tokenizer has no BOS token; run without it.")
        return bos

    def first_delimiter(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Finds the first "." or newline token after position 0 in every sequence; -1 for none. [B, T] -> [B]."""
        if mask is not None:
            return np.concatenate([self.first_delimiter(row[own][None]) for row, own in zip(tokens, mask, strict=True)])
        tokenizer = self._tokenizer()
        ids = [int(i) for i in np.unique(tokens) if tokenizer.token_text(int(i)).strip(" ") in DELIMITERS]
        found = np.isin(tokens, ids)
        found[:, 0] = False
        return np.where(found.any(axis=1), found.argmax(axis=1), -1).astype(np.int32)

    def check_tokens(self, tokens: Any, mask: Any = None) -> Any:
        """Gives `tokens` as an array int [B, T] that this model takes, 0 at padding; errors as `__call__`."""
        return check_tokens(self.config, tokens, mask)

    def check_inputs(self, inputs: Any, mask: Any = None) -> tuple[Any, Any]:
        """Gives `inputs` as tokens that this model can take, and `own_positions`; see `__call__` for the errors."""
        tokens = self.check_tokens(inputs, mask)
        return tokens, None if mask is None else own_positions(mask)

    def token_texts(self, inputs: Any) -> list[str]:
        """Names each token of a sequence int [T]: its text, or its id where there is no tokenizer."""
        ids = [int(i) for i in np.asarray(inputs)]
        return [self.tokenizer.token_text(i) if self.tokenizer else str(i) for i in ids]

    def rules(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        """Gives the position rules that an `Edit` may name."""
        return {**RULES, "first_delimiter": self.first_delimiter}

    def input_words(self) -> str:
        """Says in a few words what the model is called with, and what is there to make it."""
        ready = "tokenize" if self.tokenizer is not None else "no tokenizer"
        return f"up to {self.config.context_length:,} tokens of {self.config.vocab_size:,}; {ready}"

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{self.name}: the checkpoint has no tokenizer; give token ids, or add tokenizer.json.")
        return self.tokenizer


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImageModel(Model):
    """Holds a vision model: a `Model` that takes images, which it prepares.

    Its attributes are those of `Model`.
    """

    module: VisionTransformer
    config: VisionConfig

    kind: ClassVar[str] = "vision model"
    _takes: ClassVar[str] = "it takes images, not tokens; see `preprocess`"
    _config: ClassVar[type] = VisionConfig

    def preprocess(self, images: Any, size: int | None = None) -> np.ndarray:
        """Prepares images as the checkpoint wants them: float32 [B, height, width, 3].

        Args:
          images: an image (PIL, or an array uint8 [height, width, 3]), a path, or a list of these.
          size: side of the result, in pixels, in place of the checkpoint's.

        Raises:
          ValueError: the checkpoint does not say how; not an image (see `ImageProcessor`).
        """
        return self._processor()(images, size)

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """Turns what `preprocess` gave into a picture again: float32 [B, H, W, 3] -> uint8 of the same shape."""
        return self._processor().pixels(images)

    def check_images(self, images: Any) -> Any:
        """Gives `images` as an array float32 [B, height, width, 3] that this model can take; see `__call__`."""
        return check_images(self.config, images)

    def check_inputs(self, inputs: Any, mask: Any = None) -> tuple[Any, Any]:
        """Gives `inputs` as images that this model can take, and None for positions; see `__call__` for the errors."""
        if mask is not None:
            raise ValueError("a mask is for tokens: images have no padding.")
        return self.check_images(inputs), None

    def token_texts(self, inputs: Any) -> list[str]:
        """Names each token of an image [height, width, 3]: CLS, reg1, … and the (row,column) of each patch."""
        return self.config.token_names(*np.shape(inputs)[:2])

    def rules(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        """Gives the position rules that an `Edit` may name."""
        tokens = self.config.num_tokens
        return {**RULES, "last": lambda x: np.full(len(x), tokens(*x.shape[1:3]) - 1, np.int32)}

    def input_words(self) -> str:
        """Says in a few words what the model is called with, and what is there to make it."""
        (height, width), registers = self.config.image_size, self.config.registers
        more = f", {registers} registers" if registers else ""
        ready = "preprocess" if self.processor is not None else "no image processor"
        return f"images of {height} × {width} pixels in patches of {self.config.patch_size}{more}; {ready}"

    def _processor(self) -> ImageProcessor:
        if self.processor is None:
            raise ValueError(
                f"{self.name}: the checkpoint has no preprocessor_config.json; add it, or give images float32 "
                "[batch, height, width, 3], normalised as the model was trained."
            )
        return self.processor
