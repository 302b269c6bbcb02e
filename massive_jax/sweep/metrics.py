"""What a sweep measures: named metrics, and a person's own. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from massive_jax.arguments import several, shown
from massive_jax.dtypes import wide
from massive_jax.forward import Output, find_ids
from massive_jax.models.loss import logits_nll

if TYPE_CHECKING:
    from massive_jax.model import TextModel


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
      beside: whether it compares with the unedited run, whose last logits it takes as data: its gradient there is 0.
    """

    words: str
    of: Literal["last", "text"]
    fn: Callable[..., jax.Array]
    ids: int = 0
    beside: bool = False


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
    "kl": Named(
        "Kullback-Leibler divergence of the next token, unedited from edited, in nats", "last", _kl, beside=True
    ),
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

    @property
    def beside(self) -> bool:
        """Whether it compares with the unedited run (see `Named`)."""
        return self.name is not None and METRICS[self.name].beside

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
      name: in `METRICS`, but none whose gradient at the unedited run is 0, as that of "kl" is.

    Returns:
      A function of an `Output` and data, the token ids as `sweep` takes them in arrays [B], or for "loss" and
      "perplexity" the tokens [B, T]; it gives a number.

    Raises:
      ValueError: no such metric.
    """
    if not isinstance(name, str) or name not in METRICS or METRICS[name].beside:
        known = ", ".join(other for other, named in METRICS.items() if not named.beside)
        raise ValueError(f"metric {shown(name)} has no function of an output; those that have are {known}.")
    metric = Metric(METRICS[name].of, name)

    def of_output(out: Output, data: Any) -> jax.Array:
        assert out.logits is not None
        if metric.of == "last":
            return metric.last(out.logits[:, -1], data)
        nll = logits_nll(out.logits, data)
        return metric.text(nll, jnp.asarray(nll.size))

    return of_output


def find_metric(given: Any, data: Any, model: TextModel, batch: int) -> tuple[Metric, Any]:
    """Gives a metric, and its data as arrays.

    Args:
      given: a name in `METRICS`, or a function.
      data: what it takes besides; None for nothing.
      model: whose tokens it is asked of.
      batch: B.

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
    wanted = "a token" if named.ids == 1 else "two tokens"
    if data is None or ids is None or len(ids) != named.ids:
        raise ValueError(
            f"metric {given} takes {wanted} as data, by id or text, each one for all or one a sequence, not "
            f"{shown(data)}."
        )
    return Metric(named.of, given), tuple(find_ids(model, f"metric {given}: data", one, (batch,)) for one in ids)
