"""Which units of a sweep run together, and how many: as many as there is memory for, with as much to leave out.

Axis letters: see `massive_jax.probe.sites`; C columns of a chunk, N units of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from massive_jax.arguments import whole_number
from massive_jax.memory import total_memory
from massive_jax.models import TransformerConfig
from massive_jax.sweep.metrics import METRICS, Metric
from massive_jax.sweep.units import Unit

_CHUNKS, _LEAST = 4, 8  # of a sequence, and columns of one
_ROWS = {"cpu": 512}  # tokens of a product: more is no faster, and units that run together share less
_ROWS_ELSEWHERE = 16384
_LOSS_ROWS = 256  # tokens whose logits exist at one time (`massive_jax.models.loss`)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Holds units that run together: their numbers, how many blocks are left out, and how many chunks of columns."""

    units: tuple[int, ...]
    layer: int
    chunk: int


def chunk_size(length: int) -> int:
    """Gives C for sequences of T columns: a fourth, a multiple of 8."""
    return min(-(-length // _CHUNKS // _LEAST) * _LEAST or _LEAST, -(-length // _LEAST) * _LEAST)


def batches(
    units: Mapping[int, Unit], numbers: Sequence[int], size: int, chunk: int, length: int, layers: int
) -> list[Batch]:
    """Puts those units of `numbers` into batches of `size`, in an order in which they share much.

    Args:
      units: by number.
      numbers: of those that have one form.
      size: N, of every batch but the last.
      chunk: C.
      length: T, a multiple of it.
      layers: L.
    """

    def cut(by: Any) -> list[Batch]:
        order = sorted(numbers, key=by)
        found = []
        for first in range(0, len(order), size):
            its = tuple(order[first : first + size])
            found.append(Batch(its, min(units[i].layer for i in its), min(units[i].column for i in its) // chunk))
        return found

    def cost(found: list[Batch]) -> int:
        return sum((layers - batch.layer) * (length // chunk - batch.chunk) for batch in found)

    return min(
        cut(lambda i: (units[i].column // chunk, units[i].layer, i)),
        cut(lambda i: (units[i].layer, units[i].column // chunk, i)),
        key=cost,
    )


@dataclasses.dataclass(frozen=True)
class Memory:
    """Says how much memory units need, from above.

    Attributes:
      config: of the model.
      metric: what is measured.
      B: sequences.
      T: columns.
      chunk: C.
    """

    config: TransformerConfig
    metric: Metric
    B: int
    T: int
    chunk: int

    def shared(self) -> int:
        """Counts the bytes that any number of units need: the unedited run, and logits of one unit at a time."""
        cfg, tokens = self.config, self.B * self.T
        stream = (cfg.num_layers + 2) * tokens * cfg.hidden_size
        cache = 2 * cfg.num_layers * tokens * cfg.num_kv_heads * cfg.head_dim
        rows = {"last": 0, "text": min(tokens, _LOSS_ROWS), "output": tokens}[self.metric.of]
        return (stream + cache) * cfg.jnp_dtype.itemsize + 3 * rows * cfg.vocab_size * 4

    def of_unit(self, nbytes: int) -> int:
        """Counts the bytes that one unit of a batch needs, whose edits are `nbytes`."""
        cfg, B, T, C = self.config, self.B, self.T, self.chunk
        F = cfg.intermediate_size * (cfg.experts.num_experts if cfg.experts is not None else 1)
        heads = (2 * cfg.num_heads + 6 * cfg.num_kv_heads) * cfg.head_dim
        streams = B * T * (3 * cfg.hidden_size + 6 * cfg.num_kv_heads * cfg.head_dim)
        block = B * C * (6 * cfg.hidden_size + 4 * F + heads) + 3 * B * cfg.num_heads * C * (T + cfg.num_slots)
        logits = 3 * B * cfg.vocab_size if self.metric.of == "last" else 0
        return 4 * (streams + block + logits) + 2 * nbytes

    def batch(self, wanted: int | None, limit: int | None, nbytes: int, count: int) -> int:
        """Gives N, how many units run together.

        Args:
          wanted: as many at most; None for what is fast.
          limit: bytes; None for a fourth of what the device has.
          nbytes: of a unit's edits.
          count: how many units there are.

        Raises:
          ValueError: a limit that one unit does not fit in.
        """
        rows = _ROWS.get(jax.default_backend(), _ROWS_ELSEWHERE)
        most = max(1, rows // (self.B * self.chunk)) if wanted is None else wanted
        room = total_memory() // 4 if limit is None else limit
        shared, each = self.shared(), self.of_unit(nbytes)
        fits = (room - shared) // each
        if fits < 1 and limit is not None:
            raise ValueError(
                f"memory is {limit:,} bytes; one unit takes {shared + each:,} at {self.B} × {self.T} tokens: give as "
                "much, fewer or shorter sequences, or a metric of the last token "
                f"({', '.join(name for name, named in METRICS.items() if named.of == 'last')})."
            )
        return max(1, min(most, fits, count))


def check_limits(batch: Any, memory: Any) -> tuple[int | None, int | None]:
    """Gives the limits as whole numbers; ValueError where they are none."""
    return (
        None if batch is None else whole_number("batch", batch, 1),
        None if memory is None else whole_number("memory", memory, 1),
    )


def by_form(units: Sequence[Unit]) -> list[list[int]]:
    """Groups the units' numbers by form, forms in the order in which they come up."""
    found: dict[Any, list[int]] = {}
    for number, unit in enumerate(units):
        found.setdefault(unit.form, []).append(number)
    return list(found.values())
