"""What the parameters of a model are: each one's axes and role are declared where it is made, and read everywhere else.

Sharding, initial scale, weight decay and the count of FLOPs ask `declared(module)`; no one goes by a parameter's name.
Axis letters: see `massive_jax.probe.sites`; W embedding width, n slots, and of images C channels, I and J rows and
columns of a patch, M rows of the position table, Z registers; "1" for an axis of one element.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import flax.linen as nn
import flax.traverse_util
import jax

from massive_jax.parallel import gathered

# "kernel": of a linear map; "residual": of one whose output is added to the stream; "table": rows that are looked up;
# "head": the output head, also where it is the embedding; "slot": what attention sees beside the tokens; "scale" and
# "bias": multiplied or added, an element each.
Role: TypeAlias = Literal["kernel", "residual", "table", "head", "slot", "scale", "bias"]
LAYERS = "L"


@dataclasses.dataclass(frozen=True)
class Parameter:
    """Says what is known of a parameter without its numbers.

    Attributes:
      axes: a letter an axis, layers first, then experts: "LEDF".
      role: what it does in the model.
      shape: its size along each axis.
    """

    axes: str
    role: Role
    shape: tuple[int, ...]

    @property
    def per_layer(self) -> bool:
        """Tells whether it is stacked over the layers."""
        return self.axes.startswith(LAYERS)

    @property
    def own_axes(self) -> str:
        """Gives the axes of one layer's, and of one expert's where experts are stacked: "DF" of "LEDF"."""
        return own_axes(self.axes)

    @property
    def matrix(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Gives the axes that a linear map reads and those that it writes, by number; None for what is no such map.

        A head's axes belong together, and a patch's: of "LHND" it is ((1, 2), (3,)). What is stacked is many maps.
        """
        if self.role not in ("kernel", "residual"):
            return None
        own, first = self.own_axes, len(self.axes) - len(self.own_axes)
        inputs = re.match("HN|IJC|.", own)  # they come first
        assert inputs is not None
        numbers = range(first, len(self.axes))
        return tuple(numbers[: inputs.end()]), tuple(numbers[inputs.end() :])

    @property
    def per_expert(self) -> bool:
        """Tells whether it is stacked over experts; a router, whose outputs the experts are, is not."""
        return "E" in self.axes.removesuffix(self.own_axes)


def own_axes(axes: str) -> str:
    """Gives `axes` without those that equal parameters are stacked along: layers and experts, in front."""
    return re.sub("^L?E?(?=.)", "", axes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Boxed(nn.meta.AxisMetadata[Any]):
    """A parameter with its declaration, as Flax hands it through `nn.scan` while a model is initialised."""

    value: Any
    axes: str = dataclasses.field(metadata={"static": True})
    role: Role = dataclasses.field(metadata={"static": True})

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> _Boxed:
        return dataclasses.replace(self, value=val)

    def add_axis(self, index: int, params: Mapping[Any, Any]) -> _Boxed:
        return dataclasses.replace(self, axes=self.axes[:index] + params[nn.PARTITION_NAME] + self.axes[index:])

    def remove_axis(self, index: int, params: Mapping[Any, Any]) -> _Boxed:
        return dataclasses.replace(self, axes=self.axes[:index] + self.axes[index + 1 :])


class Module(nn.Module):
    """Declares its parameters, as a Flax module; `init` gives plain arrays, as that of any other."""

    @nn.nowrap
    def declare(
        self, name: str, axes: str, role: Role, init: Callable[..., Any], shape: tuple[int, ...], *dtype: Any
    ) -> jax.Array:
        """Returns the parameter `name`, as `nn.Module.param` does, and says what it is.

        Args:
          name: of the parameter.
          axes: a letter an axis of this module's own; those that it is stacked along are added by what stacks it.
          role: what it does in the model.
          init: an initialiser, which takes a key, the shape and the dtype.
          shape: as many sizes as `axes` has letters.
          *dtype: of the parameter; none for the initialiser's own.
        """
        if len(axes) != len(shape):
            raise ValueError(f"parameter {name!r} of shape {list(shape)} has axes {axes!r}: give a letter an axis.")

        def boxed(key: jax.Array, *given: Any) -> _Boxed:
            return _Boxed(init(key, *given), axes, role)

        parameter: Any = self.param(name, boxed, shape, *dtype)  # unboxed
        # An embedding's rows are looked up where they are, and a head is gathered where it is multiplied with.
        return parameter if "V" in axes else gathered(parameter, axes)

    @nn.nowrap
    def init_with_output(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Initialises as `nn.Module.init_with_output` does, which `init` calls; the parameters are plain arrays."""
        out, variables = super().init_with_output(*args, **kwargs)
        return out, nn.unbox(variables)


@functools.lru_cache(maxsize=8)
def declared(module: nn.Module) -> Mapping[str, Parameter]:
    """Returns path ("layers/attn/query/kernel") -> what is declared of it, for every parameter of a model.

    Nothing is allocated: the module is traced, which takes a few tenths of a second.
    """

    def init(key: jax.Array, example: Any) -> Any:
        return nn.Module.init_with_output(module, key, example)[1]["params"]

    tree = jax.eval_shape(init, jax.random.key(0), module.config.example)
    return types.MappingProxyType(
        {
            path: Parameter(box.axes, box.role, box.value.shape)
            for path, box in flax.traverse_util.flatten_dict(tree, sep="/").items()
        }
    )
