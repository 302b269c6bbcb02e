"""Setting massive activations to something else, and what becomes of the perplexity (paper, section 3.1).

Axis letters: see `massive_jax.probe.sites`; W windows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from massive_jax.analysis.massive import FIRST_DELIMITER
from massive_jax.data.windows import Windows
from massive_jax.evaluate.batches import Progress, batches
from massive_jax.evaluate.perplexity import perplexity
from massive_jax.model import Model
from massive_jax.probe import OPS, Capture, Edit
from massive_jax.probe.sites import check_layers


@dataclasses.dataclass(frozen=True)
class PlaceInStream:
    """A (position, dim) of the residual stream; position may be a rule, "first_delimiter"."""

    position: int | str
    dim: int

    def __str__(self) -> str:
        return f"{self.position}:{self.dim}"


@dataclasses.dataclass(frozen=True)
class Operation:
    """What to do at each site: "zero", "mean" (each site's own mean), "shuffle", or an op of `Edit` with a number."""

    op: str
    value: float | None = None

    @classmethod
    def parse(cls, text: str) -> Operation:
        """Reads "zero", "mean", "shuffle", "set=0.5", "scale=2", "add=1", "noise=3"; ValueError otherwise."""
        op, _, number = text.partition("=")
        takes_number = op in OPS and op != "shuffle"
        known = "zero, mean, shuffle, set=X, scale=X, add=X, noise=X"
        if op not in ("zero", "mean", *OPS) or takes_number != bool(number):
            raise ValueError(f"unknown operation {text!r}; known: {known} (X a number).")
        try:
            return cls(op, float(number) if number else None)
        except ValueError:
            raise ValueError(f"operation {text!r}: {number!r} is not a number; known: {known}.") from None

    def __str__(self) -> str:
        return self.op if self.value is None else f"{self.op}={self.value:g}"

    def edit(self, layer: int, site: PlaceInStream, mean: float) -> Edit:
        """The edit this operation makes at `site` of the output of block `layer`."""
        op = "set" if self.op in ("zero", "mean") else self.op
        value = mean if self.op == "mean" else self.value or 0.0
        return Edit("block_out", layer=layer, position=site.position, dim=site.dim, op=op, value=value)


def parse_sites(text: str) -> list[PlaceInStream]:
    """Reads "POS:DIM,…"; POS is an integer or "delim", the first delimiter of each window.

    Raises:
      ValueError: not of that form; the message says which part.
    """
    sites = []
    for part in text.split(","):
        position, _, dim = part.strip().partition(":")
        if not dim.isdecimal() or not (position.isdecimal() or position in ("delim", FIRST_DELIMITER)):
            raise ValueError(
                f"cannot read the site {part!r}; give POS:DIM,… with POS a token position or 'delim' and DIM a dim, "
                "such as 0:507,0:247; or 'auto'."
            )
        sites.append(PlaceInStream(int(position) if position.isdecimal() else FIRST_DELIMITER, int(dim)))
    if len(set(sites)) < len(sites):
        raise ValueError(f"the sites {text!r} name a place twice.")
    return sites


def hidden_state(model: Model, tokens: np.ndarray, layer: int) -> np.ndarray:
    """Output of block `layer`: int [B, T] -> float32 [B, T, D] on the host."""
    check_layers([layer], model.config.num_layers, "layer")
    out = model(tokens, capture=Capture("block_out", layers=(layer,)), logits=False)
    return np.asarray(out.intermediates["block_out"][0], np.float32)


def site_means(
    model: Model, windows: Windows, layer: int, sites: Sequence[PlaceInStream], progress: Progress | None = None
) -> list[float]:
    """Mean over the windows of the activation at each site of the output of block `layer`, unedited.

    Raises:
      ValueError: a layer, position or dim out of range; a delimiter site in a text without delimiters.
    """
    # Compiling the edits is the check of the sites: it names every one that is out of range.
    probe = [Edit("block_out", layer=layer, position=site.position, dim=site.dim) for site in sites]
    model.compile_edits(probe, model.check_tokens(windows.tokens))
    values: list[list[np.ndarray]] = [[] for _ in sites]
    for _, tokens in batches(windows.tokens, progress):
        hidden = hidden_state(model, tokens, layer)
        for found, site in zip(values, sites, strict=True):
            position = model.first_delimiter(tokens) if isinstance(site.position, str) else site.position
            positions = np.broadcast_to(np.asarray(position), len(tokens))
            rows = np.flatnonzero(positions >= 0)
            found.append(hidden[rows, positions[rows], site.dim])
    means = []
    for site, found in zip(sites, values, strict=True):
        over_windows = np.concatenate(found)
        if not over_windows.size:
            raise ValueError(f"site {site}: no window has a delimiter.")
        means.append(float(over_windows.mean(dtype=np.float64)))
    return means


def intervene(
    model: Model,
    windows: Windows,
    layer: int,
    sites: Sequence[PlaceInStream],
    operations: Sequence[Operation],
    means: Sequence[float],
    progress: Progress | None = None,
) -> dict[str, float]:
    """Perplexity under each operation at all of `sites` of the output of block `layer`, by the operation's name."""
    return {
        str(operation): perplexity(
            model,
            windows,
            [operation.edit(layer, site, mean) for site, mean in zip(sites, means, strict=True)],
            progress,
        )
        for operation in operations
    }
