"""A model as a module of Flax's NNX, and its parameters back."""

from __future__ import annotations

from typing import Any

import flax.traverse_util
import jax
from flax import nnx

from massive_jax import files
from massive_jax.arguments import shown
from massive_jax.forward import Output, own_positions
from massive_jax.models import LanguageModel, VisionTransformer


class NnxModel(nnx.bridge.ToNNX):
    """Holds a model as NNX has it: its parameters are `nnx.Param`s, under the names that they have in `Model.params`.

    `nnx.jit`, `nnx.grad`, `nnx.Optimizer` and `nnx.split` take it as they take any module.
    """

    def __call__(  # type: ignore[override]
        self, inputs: Any, *, mask: Any = None, logits: bool = True, **other: Any
    ) -> Output:
        """Runs the model.

        Args:
          inputs: tokens int [B, T], or images float32 [B, height, width, 3]; not checked, as they may be traced.
          mask: bool [B, T], False for padding; None for none.
          logits: whether to compute the logits.
          **other: none. Captures and edits are the `Model`'s: `model.from_nnx(module)(inputs, capture=…, edits=…)`.

        Raises:
          ValueError: another argument.
        """
        if other:
            raise ValueError(
                f"{files.listed(other)}: an NNX module takes inputs, mask and logits; captures and edits are "
                "the Model's: model.from_nnx(module)(…)."
            )
        padded = {} if mask is None else {"positions": own_positions(mask)}
        out, hidden, *pooled = super().__call__(inputs, logits=logits, **padded)
        return Output(out, hidden, {}, *pooled)


def to_nnx(module: LanguageModel | VisionTransformer, params: Any) -> NnxModel:
    """Gives a model as an NNX module; the arrays are shared, and stay on their devices."""
    made = NnxModel(module)
    for name, value in params.items():
        setattr(made, name, nnx.data(jax.tree.map(nnx.Param, value)))
    return made


def params_of(module: Any, like: Any) -> dict[str, Any]:
    """Gives the parameters of an NNX module as `Model.params` has them.

    Args:
      module: what `to_nnx` made, trained perhaps.
      like: parameters of the model.

    Raises:
      ValueError: something else; or parameters of other names or shapes; it names them.
    """
    if not isinstance(module, nnx.Module):
        raise ValueError(
            f"module is {shown(module)}; give what `to_nnx` made. A state: nnx.update(module, state) first."
        )
    leaves = nnx.to_flat_state(nnx.state(module, nnx.Param))
    found = {"/".join(map(str, path)): leaf[...] for path, leaf in leaves}
    expected = flax.traverse_util.flatten_dict(like, sep="/")
    shapes = ({name: tuple(x.shape) for name, x in each.items()} for each in (found, expected))
    ours, theirs = shapes
    if wrong := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        raise ValueError(
            f"the module is not one of this model: {files.listed(wrong, 5)} are missing, others or of another shape."
        )
    return flax.traverse_util.unflatten_dict({name: found[name] for name in expected}, sep="/")
