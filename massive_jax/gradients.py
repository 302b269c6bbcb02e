"""Gradients of a metric of a model's output with respect to the tensors at its sites.

They are gradients by the value of an edit that adds zeros: what reads and edits a site is also what differentiates.
Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from massive_jax.arguments import shown
from massive_jax.cards import Card, in_words
from massive_jax.forward import Output, forward
from massive_jax.models import LanguageModel, VisionTransformer
from massive_jax.parallel import mesh_of_params, mesh_set, split
from massive_jax.probe import ALL_SITES, Capture, CapturePlan, Edit, EditCollection, Summand
from massive_jax.probe.functions import array_shapes, result_shapes
from massive_jax.probe.sites import Site

if TYPE_CHECKING:
    from massive_jax.model import Model

Metric = Callable[..., Any]
"""Makes of an `Output`, and of data where there are any, one number, or one a sequence: float [B]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Gradients(Card):
    """Holds the gradients of a metric, and where they were taken.

    Attributes:
      value: the metric, float [] or [B].
      gradients: site -> float32 [L', B, T, …], or [B, T, …] of a site outside the blocks; zeros at padding. Of a metric
        with a number a sequence each sequence has the gradient of its own.
      activations: site -> the tensors themselves, likewise, after edits.
    """

    value: jax.Array
    gradients: dict[str, jax.Array]
    activations: dict[str, jax.Array]


def gradient(
    model: Model,
    inputs: Any,
    metric: Metric,
    sites: str | Sequence[str],
    *,
    data: Any = None,
    layers: Sequence[int] | int | None = None,
    mask: Any = None,
    edits: Edit | Sequence[Edit] | EditCollection | None = None,
) -> Gradients:
    r"""Gives the gradients of a metric of the output with respect to the tensors at some sites, after their edits.

    One program serves other inputs of the same shape, other layers, if as many, other data, and other edits of the same
    form. Memory is that of the tensors returned, once more the gradients, the stream at every layer [L, B, T, D] and
    one block's backward pass: blocks are run again on the way back.

    Args:
      model: a language or vision model.
      inputs: tokens, int [B, T], or images.
      metric: takes the `Output`, and `data` where it is given; gives a float, or one a sequence [B]. In jax, and traced
        once for each function and shape: define it outside of loops, and give what changes as data.
      sites: a site's name, or several.
      data: arrays for the metric, in a tuple or a dict, say; None for none.
      layers: 1-based layers, in the order wanted; None for all.
      mask: bool [B, T], False for padding; None for none.
      edits: interventions.

    Raises:
      ValueError: as `Model.__call__` and `Capture`; a metric that is no function, fails, leaves jax, or gives something
        else than a number or one a sequence; data that are no arrays.

    Examples:
      Attribution patching (Nanda, 2023): what putting the clean run's stream in the corrupted one's place would do to a
      difference of logits, to first order, at every layer and position at once.

      >>> clean, corrupted = model.tokenize(["The capital of France is", "The capital of Italy is"])[:, None]
      >>> def paris_or_rome(out, ids):
      ...     return out.logits[:, -1, ids[0]] - out.logits[:, -1, ids[1]]
      >>> ids = np.array([model.encode(" Paris")[0], model.encode(" Rome")[0]])
      >>> there = model.gradient(clean, paris_or_rome, "block_out", data=ids)
      >>> here = model.gradient(corrupted, paris_or_rome, "block_out", data=ids)
      >>> change = there.activations["block_out"] - here.activations["block_out"]
      >>> effect = (change * here.gradients["block_out"]).sum(axis=-1)  # [L, B, T]
      >>> effect[[22, 23], 0].argmax(axis=-1).tolist()  # block 24 moves it from the country to the end
      [3, 4]

      Integrated gradients (arXiv 1703.01365) are the mean of such gradients under edits that lead from a baseline to
      the tensor, `mj.Edit("block_out", layer=1, value=step * stream)`: other numbers, so one program.
    """
    if not callable(metric):
        raise ValueError(f"metric is {shown(metric)}; give a function of the Output, and of data where they are given.")
    try:
        hash(metric)
    except TypeError:
        raise ValueError(f"metric is {shown(metric)}, which cannot be hashed; give a function made with def.") from None
    array_shapes("data", data)
    inputs, positions = model.check_inputs(inputs, mask)
    compiled, plan = model.compile_edits(edits, inputs, mask), model.compile_captures(Capture(sites, layers))
    return gradient_at(model.module, model.params, compiled, plan, inputs, metric, data, positions)


def gradient_at(
    module: LanguageModel | VisionTransformer,
    params: Any,
    edits: EditCollection,
    plan: CapturePlan,
    inputs: Any,
    metric: Metric,
    data: Any = None,
    positions: Any = None,
) -> Gradients:
    """Does what `gradient` does with what is checked and compiled; see also `massive_jax.forward.forward`.

    `plan` keeps whole tensors of the sites: those of a `Capture` without reductions.
    """
    with mesh_set(mesh_of_params(params, edits, inputs)):
        return _gradient(module, metric, params, edits, plan, inputs, data, positions)


@functools.partial(jax.jit, static_argnames=("module", "metric"))
def _gradient(
    module: LanguageModel | VisionTransformer,
    metric: Metric,
    params: Any,
    edits: EditCollection,
    plan: CapturePlan,
    inputs: Any,
    data: Any,
    positions: Any,
) -> Gradients:
    sizes, module = module.config.input_sizes(inputs.shape), module.clone(remat="full")
    zeros = {name: _zeros(ALL_SITES[name], sizes, spec.num_slots) for name, spec in plan.specs}

    def run(values: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        summands: Any = {name: (Summand(value, plan.slots.get(name)),) for name, value in values.items()}
        added = {name: (*edits.get(name, ()), *summands.get(name, ())) for name in {**edits, **summands}}
        out = forward(module, params, added, plan, inputs, True, positions)
        value = _metric(metric, out, data, sizes["B"])
        return jnp.sum(value), (value, out.intermediates)

    (_, (value, activations)), gradients = jax.value_and_grad(run, has_aux=True)(zeros)
    return Gradients(value, gradients, {name: activations[name] for name in zeros})


def _zeros(site: Site, sizes: Mapping[str, int], num_slots: int | None) -> jax.Array:
    """What is added to a site, in so many layers; None outside the blocks."""
    layers, axes = ((), "") if num_slots is None else ((num_slots,), "L")
    return split(jnp.zeros((*layers, *site.shape(sizes))), axes + site.axes)


def _metric(metric: Metric, out: Output, data: Any, B: int) -> jax.Array:
    """The metric of an output; ValueError of one line where it is none."""
    args = (out,) if data is None else (out, data)
    try:
        found = result_shapes(metric, *args)
    except ValueError as error:
        given = "the Output, whose logits are out.logits" + ("" if data is None else ", and data")
        raise ValueError(f"metric {error}; it is called with {given}.") from None
    shaped = getattr(found, "shape", None) in ((), (B,))
    if not shaped or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(f"metric gives {in_words(found)}; it has to give a float, or one a sequence, float[{B}].")
    return jnp.asarray(metric(*args))
