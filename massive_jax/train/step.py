"""The compiled training step. Axis letters: see `massive_jax.probe.sites`; A micro-batches that a step adds up."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from massive_jax.models import LanguageModel, Parameter, VisionTransformer, declared
from massive_jax.parallel import BATCH_AXES, mesh_set, on_mesh, param_sharding
from massive_jax.train.objective import NEXT_TOKEN, Objective
from massive_jax.train.optimizer import OptimizerConfig, decayed, make_optimizer, matrices

_NANOGPT_STD = 0.02


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Holds what a step takes and gives. Nothing in a step is random, so there is no key.

    Attributes:
      params: float32, whatever dtype the model computes in.
      opt_state: of the optimiser.
      step: int32 [], steps done.
      average: exponential moving average of `params`; None where none is kept.
    """

    params: Any
    opt_state: Any
    step: Any
    average: Any = None

    @property
    def evaluated(self) -> Any:
        """Gives the parameters that are evaluated and saved: the average where there is one."""
        return self.params if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Holds the functions of one training; those of equal trainers are compiled once.

    Attributes:
      module: the model; its config's dtype is that of the activations, its `remat` what is computed twice.
      optimizer: the recipe.
      accumulate: A, micro-batches whose gradients are averaged in one step.
      mesh: devices that the state and the batch are split over (see `massive_jax.parallel`); None for one device.
      objective: what is minimised.
      kernel_std: of every kernel at the start (see `init`); None for the modules' own, 1 / √(inputs of the map).
      ema: decay of the moving average of the parameters; 0 for none. It is less in the first steps.
    """

    module: LanguageModel | VisionTransformer
    optimizer: OptimizerConfig
    accumulate: int = 1
    mesh: Mesh | None = None
    objective: Objective = NEXT_TOKEN
    kernel_std: float | None = _NANOGPT_STD
    ema: float = 0.0

    @property
    def transformation(self) -> optax.GradientTransformation:
        """Gives the optimiser of this model's parameters."""
        return make_optimizer(self.optimizer, decayed(self.module), matrices(self.module))

    def init(self, seed: int) -> TrainState:
        """Makes the state to start from: kernels normal, those that add to the stream over √(2L), as nanoGPT's."""
        state = _init(self, jax.random.key(seed))
        # Bound to the device, as a state from a checkpoint is: jax compiles a step for each kind.
        return state if self.mesh is not None else jax.device_put(state, jax.devices()[0])

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes one step of the optimiser. The state given is used up.

        Args:
          state: the state.
          batch: what the objective takes, with A·B in place of B: this process's part of the batch
            (`massive_jax.parallel.process_part`).

        Returns:
          The next state, and float32 [] "loss" (mean over the batch, before the step), "grad_norm" (before clipping)
          and "learning_rate".
        """
        micro = self.micro_batches(batch)
        with mesh_set(self.mesh):
            return _step(self, state, micro)

    def micro_batches(self, batch: Any) -> Any:
        """Gives a batch as the compiled step takes it: A in front of the batch's axis, on the devices of the mesh."""
        micro = jax.tree.map(lambda x: x.reshape(self.accumulate, -1, *x.shape[1:]), batch)
        if self.mesh is None:
            return micro
        sharding = NamedSharding(self.mesh, PartitionSpec(None, BATCH_AXES))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), micro)

    def compile(
        self, state: TrainState, batch: Any, options: dict[str, bool | str] | None = None
    ) -> jax.stages.Compiled:
        """Compiles the step without taking it: called with a state and `micro_batches`, it does what `step` does.

        Args:
          state: a state, or what `abstract` gives.
          batch: see `step`.
          options: of XLA's compiler.
        """
        return self.lower(state, batch).compile(compiler_options=options)

    def lower(self, state: TrainState, batch: Any) -> jax.stages.Lowered:
        """Turns the step into a program that is not compiled yet; see `compile` for the arguments."""
        with mesh_set(self.mesh):
            return _step.lower(self, state, self.micro_batches(batch))

    def loss(self, params: Any, batch: Any) -> jax.Array:
        """Gives the objective's loss on a batch, float32 []; every process gives the whole batch."""
        batch = self.on_devices(batch, PartitionSpec(BATCH_AXES))
        with mesh_set(self.mesh):
            return _loss(self, params, batch)

    def abstract(self) -> TrainState:
        """Gives the state's shapes, dtypes and shardings."""
        shapes = jax.eval_shape(functools.partial(_initial, self), jax.random.key(0))
        parameters, alone = declared(self.module), jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def placed(path: Any, x: Any) -> jax.ShapeDtypeStruct:
            # The optimiser's moments are kept like the parameters whose names their paths end with; what belongs to no
            # parameter is whole everywhere.
            names = _name(path).split("/")
            ends = ("/".join(names[start:]) for start in range(len(names)))
            parameter = next((parameters[end] for end in ends if end in parameters), None)
            axes = "1" * x.ndim if parameter is None else parameter.axes
            sharding = param_sharding(axes, x.shape, self.mesh) or alone
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(placed, shapes)

    def on_devices(self, batch: Any, spec: PartitionSpec) -> Any:
        """Splits arrays that every process has whole over the mesh by `spec`; leaves them without one."""
        if self.mesh is None:
            return batch
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda x: on_mesh(x, sharding), batch)


def starting_scale(parameter: Parameter, num_layers: int) -> float | None:
    """Gives what a kernel's numbers are multiplied by at the start; None for what is no kernel and starts as it is.

    Kernels that add to the stream, experts' too, are divided by √(2L), as nanoGPT's: L layers add to it twice each.
    What is in no layer (an image's pooling) adds to a stream of its own, once.
    """
    if parameter.role not in ("kernel", "residual"):
        return None
    return 1 / (2 * num_layers) ** 0.5 if parameter.role == "residual" and parameter.per_layer else 1.0


def _initial(trainer: Trainer, key: jax.Array) -> TrainState:
    config, parameters = trainer.module.config, declared(trainer.module)
    params = trainer.module.init(key, jnp.zeros(config.example.shape, config.example.dtype))["params"]

    def started(path: Any, leaf: jax.Array) -> jax.Array:
        name = _name(path)
        scale = starting_scale(parameters[name], config.num_layers)
        if scale is None:
            return leaf
        if trainer.kernel_std is None:
            return scale * leaf
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return scale * trainer.kernel_std * jax.random.normal(own, leaf.shape, leaf.dtype)

    params = jax.tree_util.tree_map_with_path(started, params)
    opt_state = trainer.transformation.init(params)
    return TrainState(params, opt_state, jnp.zeros((), jnp.int32), params if trainer.ema else None)


def _kept_in_place(trainer: Trainer, state: TrainState) -> TrainState:
    if trainer.mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, jax.tree.map(lambda x: x.sharding, trainer.abstract()))


@functools.partial(jax.jit, static_argnums=0)
def _init(trainer: Trainer, key: jax.Array) -> TrainState:
    return _kept_in_place(trainer, _initial(trainer, key))


def _mean_loss(trainer: Trainer, params: Any, batch: Any) -> jax.Array:
    return trainer.objective.loss(trainer.module, params, batch)


_loss = jax.jit(_mean_loss, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _step(trainer: Trainer, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    loss, grads = _gradient(trainer, state.params, batch)
    updates, opt_state = trainer.transformation.update(grads, state.opt_state, state.params)
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": trainer.optimizer.schedule(state.step),
    }
    params, step = optax.apply_updates(state.params, updates), state.step + 1
    average = state.average
    if trainer.ema:
        decay = jnp.minimum(trainer.ema, step / (step + 9.0))  # of the first steps little is kept
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, params)
    return _kept_in_place(trainer, TrainState(params, opt_state, step, average)), metrics


def _gradient(trainer: Trainer, params: Any, batch: Any) -> tuple[jax.Array, Any]:
    """Loss and gradient of the parameters, means over the micro-batches, the batch's first axis A."""
    of_one = functools.partial(jax.value_and_grad(_mean_loss, argnums=1), trainer)
    if trainer.accumulate == 1:
        return of_one(params, jax.tree.map(lambda x: x[0], batch))

    def add(total: Any, micro: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_one(params, micro)), None

    zero = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add, zero, batch)
    return jax.tree.map(lambda x: x / trainer.accumulate, total)


def _name(path: Any) -> str:
    """The names of dicts on a path in a tree: "layers/attn/query/kernel"."""
    return "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
