"""What a sweep measures: named metrics, and a person's own. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.arguments import is_index, several, shown
from massive_jax.dtypes import wide
from massive_jax.files import listed
from massive_jax.forward import Output
from massive_jax.models.loss import logits_nll


def _at(x: jax.Array, ids: jax.Array) -> jax.Array:
    """[B, V], int [B] -> [B]."""
    return jnp.take_along_axis(x, ids[:, None], axis=-1)[:, 0]


def _kl(logits: jax.Array, unedited: jax.Array) -> jax.Array:
    before, after = jax.nn.log_softmax(unedited, axis=-1), jax.nn.log_softmax(logits, axis=-1)
    return jnp.sum(jnp.exp(before) * (before - after), axis=-1)


@dataclasses.dataclass(frozen=True)
class Named:
    """Describes a metric that has a name.

    Attributes:
      words: what it is.
      of: the logits of each sequence's "last" token, or the "text": every token's negative log-likelihood but the
        first's.
      fn: of the former makes a number a sequence: logits [B, V] and data -> [B]; of the latter's mean [], a number.
      ids: how many token ids it takes as data.
    """

    words: str
    of: Literal["last", "text"]
    fn: Callable[..., jax.Array]
    ids: int = 0


METRICS: Mapping[str, Named] = {
    "loss": Named("mean negative log-likelihood of the tokens after the first, in nats", "text", lambda loss: loss),
    "perplexity": Named("exp(loss)", "text", jnp.exp),
    "logit": Named("logit of a token, next", "last", lambda logits, ids: _at(logits, ids[0]), 1),
    "logit_difference": Named(
        "logit of a token less that of another, next",
        "last",
        lambda logits, ids: _at(logits, ids[0]) - _at(logits, ids[1]),
        2,
    ),
    "log_probability": Named(
        "log probability of a token, next",
        "last",
        lambda logits, ids: _at(jax.nn.log_softmax(logits, axis=-1), ids[0]),
        1,
    ),
    "probability": Named(
        "probability of a token, next", "last", lambda logits, ids: _at(jax.nn.softmax(logits, axis=-1), ids[0]), 1
    ),
    "kl": Named("Kullback-Leibler divergence of the next token, unedited from edited, in nats", "last", _kl),
}
"""The metrics that have a name; those of the next token are means over the sequences."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """Holds a metric as the program has it: a name in `METRICS`, or a function of `Output`, and of data or not."""

    of: Literal["last", "text", "output"]
    name: str | None = None
    fn: Callable[..., Any] | None = None
    with_data: bool = False

    @property
    def title(self) -> str:
        """Gives what it is called."""
        return self.name or getattr(self.fn, "__name__", None) or shown(self.fn)

    def last(self, logits: jax.Array, data: Any) -> jax.Array:
        """Of each sequence's last token: float32 [B, V] -> []."""
        return jnp.mean(METRICS[str(self.name)].fn(logits, data))

    def text(self, nll: jax.Array, predicted: jax.Array) -> jax.Array:
        """Of every token's negative log-likelihood, zeros where none is predicted: float32 [B, T] -> []."""
        return METRICS[str(self.name)].fn(jnp.sum(nll) / predicted)

    def output(self, logits: jax.Array, last_hidden: jax.Array, data: Any) -> jax.Array:
        """Of logits [B, T, V] and the last hidden state [B, T, W]: [] or [B]."""
        assert self.fn is not None
        out = Output(logits, last_hidden, {})
        found = jnp.asarray(self.fn(out, data) if self.with_data else self.fn(out))
        return found.astype(wide(found.dtype)) if jnp.issubdtype(found.dtype, jnp.floating) else found


@functools.lru_cache(maxsize=64)  # one function, so one program
def metric_function(name: str) -> Callable[[Output, Any], jax.Array]:
    """Gives a named metric as a function for `Model.gradient`, of sequences without padding.

    Args:
      name: in `METRICS`, but "kl", whose gradient at the unedited run is 0.

    Returns:
      A function of an `Output` and data, the token ids as `sweep` takes them in arrays [B], or for "loss" and
      "perplexity" the tokens [B, T]; it gives a number.

    Raises:
      ValueError: no such metric.
    """
    if name not in METRICS or name == "kl":
        known = ", ".join(other for other in METRICS if other != "kl")
        raise ValueError(f"metric {shown(name)} has no function of an output; those that have are {known}.")
    metric = Metric(METRICS[name].of, name)

    def of_output(out: Output, data: Any) -> jax.Array:
        assert out.logits is not None
        if metric.of == "last":
            return metric.last(out.logits[:, -1], data)
        nll = logits_nll(out.logits, data)
        return metric.text(nll, jnp.asarray(nll.size))

    return of_output


def find_metric(given: Any, data: Any, batch: int, vocabulary: int) -> tuple[Metric, Any]:
    """Gives a metric, and its data as arrays.

    Args:
      given: a name in `METRICS`, or a function.
      data: what it takes besides; None for nothing.
      batch: B.
      vocabulary: V.

    Raises:
      ValueError: no metric; data that it does not take, or lacks; a token id that is none.
    """
    if callable(given):
        try:
            hash(given)
        except TypeError:
            raise ValueError(
                f"metric is {shown(given)}, which cannot be hashed; give a function made with def."
            ) from None
        return Metric("output", fn=given, with_data=data is not None), data
    if not isinstance(given, str) or given not in METRICS:
        raise ValueError(
            f"unknown metric {shown(given)}; the metrics are {', '.join(METRICS)}, and functions of an Output."
        )
    named = METRICS[given]
    if not named.ids:
        if data is not None:
            raise ValueError(f"metric {given} takes no data; it was given {shown(data)}.")
        return Metric(named.of, given), None
    ids = (data,) if named.ids == 1 else several(data)
    wanted = "a token id" if named.ids == 1 else "two token ids"
    if data is None or ids is None or len(ids) != named.ids:
        raise ValueError(
            f"metric {given} takes {wanted} as data, each one for all or one a sequence, not {shown(data)}."
        )
    return Metric(named.of, given), tuple(_ids(given, one, batch, vocabulary) for one in ids)


def _ids(metric: str, given: Any, batch: int, vocabulary: int) -> np.ndarray:
    """Token ids int32 [B] from one for all, or one a sequence."""
    numbers = (given,) * batch if is_index(given) else several(given)
    if numbers is None or len(numbers) != batch or not all(map(is_index, numbers)):
        raise ValueError(f"metric {metric}: a token id is {shown(given)}; give a whole number, or one a sequence.")
    if bad := sorted({number for number in numbers if not 0 <= number < vocabulary}):
        raise ValueError(f"metric {metric}: token ids {listed(bad)} are not in the vocabulary, 0 to {vocabulary - 1}.")
    return np.array([int(number) for number in numbers], np.int32)
