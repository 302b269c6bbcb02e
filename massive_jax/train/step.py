"""The compiled training step. Axis letters: see `massive_jax.probe.sites`; A micro-batches that a step adds up."""

from __future__ import annotations

import dataclasses
import functools
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from massive_jax.models import LanguageModel, head_of
from massive_jax.models.loss import mean_nll
from massive_jax.parallel import param_sharding
from massive_jax.train.optimizer import OptimizerConfig, make_optimizer

_STD = 0.02  # of every kernel at the start; see `Trainer.init`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step takes and gives. Nothing in a step is random, so there is no key.

    Attributes:
      params: float32, whatever dtype the model computes in.
      opt_state: of the optimiser.
      step: int32 [], steps done.
    """

    params: Any
    opt_state: Any
    step: Any


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The functions of one training; those of equal trainers are compiled once.

    Attributes:
      module: the model; its config's dtype is that of the activations, its `remat` what is computed twice.
      optimizer: the recipe.
      accumulate: A, micro-batches whose gradients are averaged in one step.
      mesh: devices that the state and the batch are split over (see `massive_jax.parallel`); None for one device.
    """

    module: LanguageModel
    optimizer: OptimizerConfig
    accumulate: int = 1
    mesh: Mesh | None = None

    def init(self, seed: int) -> TrainState:
        """The state to start from, as nanoGPT's: kernels N(0, 0.02²), those that add to the stream over √(2L)."""
        state = _init(self, jax.random.key(seed))
        # Bound to the device, as a state from a checkpoint is: jax compiles a step for each kind.
        return state if self.mesh is not None else jax.device_put(state, jax.devices()[0])

    def step(self, state: TrainState, tokens: np.ndarray) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step of the optimiser. The state given is used up.

        Args:
          state: the state.
          tokens: int32 [A·B, T + 1], this process's part of the batch: the inputs and, one further, the targets.

        Returns:
          The next state, and float32 [] "loss" (mean over all tokens, before the step), "grad_norm" (before clipping)
          and "learning_rate".
        """
        batch = tokens.reshape(self.accumulate, -1, tokens.shape[-1])
        return _step(self, state, self._on_devices(batch, PartitionSpec(None, "data")))

    def loss(self, params: Any, tokens: np.ndarray) -> jax.Array:
        """Mean negative log-likelihood of int32 [B, T + 1], float32 []."""
        return _loss(self, params, self._on_devices(tokens, PartitionSpec("data")))

    def abstract(self) -> TrainState:
        """The state's shapes, dtypes and shardings."""
        shapes = jax.eval_shape(functools.partial(_initial, self), jax.random.key(0))
        alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def placed(path: Any, x: Any) -> jax.ShapeDtypeStruct:
            # The optimiser's moments are kept like the parameters whose names their paths end with.
            sharding = param_sharding(_name(path), x.shape, self.mesh) or alone
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(placed, shapes)

    def _on_devices(self, tokens: np.ndarray, spec: PartitionSpec) -> Any:
        if self.mesh is None:
            return tokens
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, spec), tokens)


def _initial(trainer: Trainer, key: jax.Array) -> TrainState:
    params = trainer.module.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    layers = trainer.module.config.num_layers

    def kernel(path: Any, leaf: jax.Array) -> jax.Array:
        name = _name(path)
        if not name.endswith("/kernel"):
            return leaf
        std = _STD / (2 * layers) ** 0.5 if re.search(r"(attn/out|mlp/down)/kernel$", name) else _STD
        return std * jax.random.normal(jax.random.fold_in(key, zlib.crc32(name.encode())), leaf.shape, leaf.dtype)

    params = jax.tree_util.tree_map_with_path(kernel, params)
    return TrainState(params, make_optimizer(trainer.optimizer).init(params), jnp.zeros((), jnp.int32))


def _kept_in_place(trainer: Trainer, state: TrainState) -> TrainState:
    if trainer.mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, jax.tree.map(lambda x: x.sharding, trainer.abstract()))


@functools.partial(jax.jit, static_argnums=0)
def _init(trainer: Trainer, key: jax.Array) -> TrainState:
    return _kept_in_place(trainer, _initial(trainer, key))


def _mean_loss(trainer: Trainer, params: Any, tokens: jax.Array) -> jax.Array:
    config = trainer.module.config
    _, hidden = trainer.module.apply({"params": params}, tokens[:, :-1], logits=False)
    return mean_nll(config, hidden, head_of(config, params), tokens[:, 1:])


_loss = jax.jit(_mean_loss, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _step(trainer: Trainer, state: TrainState, batch: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    loss, grads = _gradient(trainer, state.params, batch)
    updates, opt_state = make_optimizer(trainer.optimizer).update(grads, state.opt_state, state.params)
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": trainer.optimizer.schedule(state.step),
    }
    new = TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
    return _kept_in_place(trainer, new), metrics


def _gradient(trainer: Trainer, params: Any, batch: jax.Array) -> tuple[jax.Array, Any]:
    """Loss and gradient of the parameters, means over the micro-batches int32 [A, B, T + 1]."""
    of_one = functools.partial(jax.value_and_grad(_mean_loss, argnums=1), trainer)
    if trainer.accumulate == 1:
        return of_one(params, batch[0])

    def add(total: Any, tokens: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_one(params, tokens)), None

    zero = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add, zero, batch)
    return jax.tree.map(lambda x: x / trainer.accumulate, total)


def _name(path: Any) -> str:
    """The names of dicts on a path in a tree: "layers/attn/query/kernel"."""
    return "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
