"""Models rewritten so that they compute the same, and round better: rotated (QuaRot) and smoothed (SmoothQuant).

Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from massive_jax.model import Model, TextModel
from massive_jax.models import BlockConfig, declared
from massive_jax.parallel import mesh_of_params, mesh_set

_ATTN, _MLP = "layers/attn/", "layers/mlp/"
_OUT, _DOWN, _UP, _VALUE = "layers/attn/out/", "layers/mlp/down/", "layers/mlp/up/", "layers/attn/value/"


def untie(model: TextModel) -> TextModel:
    """Gives `model` with an output head of its own, equal to the embedding, where it is tied to it."""
    if not model.config.tie_embeddings:
        return model
    params = {**model.params, "head": model.params["embedding"]}
    return model.with_params(dataclasses.replace(model.config, tie_embeddings=False), params)


def hadamard(n: int) -> np.ndarray:
    """Makes a Hadamard matrix over √n, orthogonal [n, n]: Sylvester's doubling of one that Paley's constructions give.

    Raises:
      ValueError: no order that these reach.

    Examples:
      >>> from massive_jax.quantize import hadamard
      >>> matrix = hadamard(576)
      >>> bool(np.allclose(matrix @ matrix.T, np.eye(576), atol=1e-5))
      True
    """
    doublings = _doublings(n)
    if doublings is None:
        raise ValueError(f"no Hadamard matrix of {n} is known here: {n} is no product of Paley's orders and 2^k.")
    found = _paley(n >> doublings)
    for _ in range(doublings):
        found = np.block([[found, found], [found, -found]])
    return found / np.sqrt(np.float32(n))


def _doublings(n: int) -> int | None:
    """How often Paley's matrix is doubled for one of order `n`; None where that gives none."""
    found = 0
    while _kind(n) is None:
        if n % 2:
            return None
        n, found = n // 2, found + 1
    return found


def _kind(n: int) -> int | None:
    """Which of Paley's constructions gives an order: q % 4 of its prime q, 0 where there is nothing to construct."""
    if n in (1, 2):
        return 0
    for q, kind in ((n - 1, 3), (n // 2 - 1, 1)):
        if n % 4 == 0 and q % 4 == kind and all(q % d for d in range(2, int(q**0.5) + 1)):
            return kind
    return None


def _paley(n: int) -> np.ndarray:
    """A Hadamard matrix [n, n] of ±1, of order 1, 2, q + 1 or 2 (q + 1) for a prime q."""
    kind = _kind(n)
    if not kind:
        return np.array([[1, 1], [1, -1]], np.float32)[:n, :n]
    q = n - 1 if kind == 3 else n // 2 - 1
    squares = {i * i % q for i in range(1, q)}
    symbol = np.array([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)], np.float32)
    core = np.ones((q + 1, q + 1), np.float32)
    core[0, 0] = 0
    core[1:, 1:] = symbol[(np.arange(q)[:, None] - np.arange(q)) % q]
    if kind == 3:
        core[1:, 0] = -1
        return core + np.eye(q + 1, dtype=np.float32)
    return np.kron(core, [[1, 1], [1, -1]]) + np.kron(np.eye(q + 1), [[1, -1], [-1, -1]]).astype(np.float32)


def why_not_rotated(config: BlockConfig) -> str | None:
    """Says why a model of `config` cannot be rotated exactly; None where it can."""
    reasons = {
        f"its {config.norm.kind} norm does not commute with a rotation": config.norm.kind != "rms",
        f"norms placed {config.norm_placement!r} scale the dims of the stream": config.norm_placement != "pre",
        "it has a layer scale": config.layer_scale,
        "its stream is clipped": config.clip_residual is not None,
        "it has a mixture of experts": config.mlp == "experts",
        "its embedding has another width": getattr(config, "embedding_size", None) is not None,
        "it has an attention bias (rotate first, then absorb)": config.attention_bias is not None,
        "it has no final norm": not config.final_norm,
        f"no Hadamard matrix is known here of its width {config.hidden_size} or its heads' {config.head_dim}": any(
            _doublings(n) is None for n in (config.hidden_size, config.head_dim)
        ),
    }
    return next((why for why, holds in reasons.items() if holds), None)


def rotate(model: TextModel, seed: int = 0) -> TextModel:
    """Gives `model` with its residual stream turned by a random Hadamard matrix, fused into the weights: exact.

    As QuaRot (arXiv 2404.00456): the scales of RMS norms go into the weights behind them, then the stream is x·Q.
    Values are turned too, each head's, and back in the output projection (not where they are clipped or scaled).
    Nothing is turned while the model runs, so the input of the down projection stays as it is.

    Args:
      model: a language model.
      seed: of the random signs.

    Raises:
      ValueError: a family whose norms do not commute with a rotation, or that cannot be turned for another reason.

    Examples:
      >>> from massive_jax.quantize import rotate
      >>> tokens = model.tokenize("Summer is warm.")
      >>> bool(np.allclose(rotate(model)(tokens).logits, model(tokens).logits, atol=1e-3))
      True
    """
    model = untie(TextModel.of(model))
    config = model.config
    if why := why_not_rotated(config):
        raise ValueError(f"{model.name} cannot be rotated: {why}; leave rotate out.")
    rng, signs = np.random.default_rng(seed), np.array([-1, 1], np.float32)
    stream, heads = (hadamard(n) * rng.choice(signs, n)[:, None] for n in (config.hidden_size, config.head_dim))
    if config.clip_qkv is not None or config.value_scale is not None:
        heads = np.eye(config.head_dim, dtype=np.float32)
    flat = flax.traverse_util.flatten_dict(dict(model.params), sep="/")
    readers = {norm: tuple(_readers(model, norm)) for norm in _norms(config)}
    with mesh_set(mesh_of_params(model.params)):
        flat |= _rotated(flat, stream, heads, offset=config.norm.unit_offset, readers=tuple(readers.items()))
    return model.with_params(config, flax.traverse_util.unflatten_dict(flat, sep="/"))


@functools.partial(jax.jit, static_argnames=("offset", "readers"))
def _rotated(
    flat: Mapping[str, jax.Array], stream: jax.Array, heads: jax.Array, *, offset: bool, readers: Any
) -> dict[str, jax.Array]:
    """The parameters that change."""
    new = {path: flat[path].astype(jnp.float32) for path in flat}

    def fold(norm: str, read: Any) -> None:
        if f"{norm}/scale" in flat:
            scale = new[f"{norm}/scale"] + offset
            for path in read:
                own = scale if path == "head" else scale.reshape(*scale.shape, *(1,) * (new[path].ndim - 2))
                new[path] = new[path] * own
            new[f"{norm}/scale"] = jnp.full_like(scale, 1 - offset)

    with jax.default_matmul_precision("highest"):
        for norm, read in readers:
            fold(f"layers/{norm}", read)
            for path in read:
                new[path] = jnp.einsum("De,LD...->Le...", stream, new[path])
        fold("norm", ["head"])
        for path in ("embedding", "position_embedding", "head", _OUT + "kernel", _OUT + "bias", _DOWN + "kernel"):
            if path in new:
                new[path] = new[path] @ stream
        if _DOWN + "bias" in new:
            new[_DOWN + "bias"] = new[_DOWN + "bias"] @ stream
        for path in (_VALUE + "kernel", _VALUE + "bias"):
            if path in new:
                new[path] = new[path] @ heads
        new[_OUT + "kernel"] = jnp.einsum("Nn,LHND->LHnD", heads, new[_OUT + "kernel"])
    return {path: x.astype(flat[path].dtype) for path, x in new.items()}


def why_not_smoothed(config: BlockConfig) -> str | None:
    """Says why a model of `config` cannot be smoothed; None where it can."""
    reasons = {
        f"norms placed {config.norm_placement!r} are not right before linear maps": config.norm_placement
        not in ("pre", "pre_and_output"),
        "its norms have no scale for each dim": not config.norm.scale or config.norm.single_scale,
        "it has a mixture of experts": config.mlp == "experts",
    }
    return next((why for why, holds in reasons.items() if holds), None)


def smooth(model: Model, largest: Mapping[str, np.ndarray], alpha: float = 0.5) -> Model:
    """Gives `model` with inputs of linear maps divided, channel by channel, and their weights multiplied: exact.

    As SmoothQuant (arXiv 2211.10438): by max|x|^alpha / max|w|^(1 - alpha) of the channel. What norms give is divided
    in their scales; in a gated MLP the input of the down projection is divided in the up projection.

    Args:
      model: whose norms are before linear maps and have a scale for each dim.
      largest: site -> [L, D] or [L, F], the largest magnitude of each channel: of attn_norm, mlp_norm and mlp_hidden.
      alpha: how much of the outliers goes to the weights, 0 to 1.

    Raises:
      ValueError: a family that cannot be smoothed.
    """
    config = model.config
    if why := why_not_smoothed(config):
        raise ValueError(f"{model.name} cannot be smoothed: {why}; leave smooth out.")
    flat = flax.traverse_util.flatten_dict(dict(model.params), sep="/")
    readers = {norm: tuple(_readers(model, norm)) for norm in _norms(config)}
    sites = {site: jnp.asarray(largest[site]) for site in ("attn_norm", "mlp_norm", "mlp_hidden")}
    options = {"offset": config.norm.unit_offset, "readers": tuple(readers.items()), "gated": config.mlp == "gated"}
    with mesh_set(mesh_of_params(model.params)):
        flat |= _smoothed(flat, sites, alpha, **options)
    return model.with_params(config, flax.traverse_util.unflatten_dict(flat, sep="/"))


@functools.partial(jax.jit, static_argnames=("offset", "readers", "gated"))
def _smoothed(
    flat: Mapping[str, jax.Array], largest: Any, alpha: Any, *, offset: bool, readers: Any, gated: bool
) -> dict[str, jax.Array]:
    new = {path: flat[path].astype(jnp.float32) for path in flat if path.startswith("layers/")}

    def factors(site: str, read: Any) -> jax.Array:
        """[L, channels], of which inputs are divided and weights multiplied by."""
        weights = [jnp.max(jnp.abs(new[path]), axis=tuple(range(2, new[path].ndim))) for path in read]
        top = functools.reduce(jnp.maximum, weights)
        found = largest[site] ** alpha / jnp.maximum(top, 1e-5) ** (1 - alpha)
        found = jnp.where((largest[site] > 0) & (top > 0), jnp.maximum(found, 1e-5), 1.0)
        for path in read:
            new[path] = new[path] * found.reshape(*found.shape, *(1,) * (new[path].ndim - 2))
        return found

    for norm, read in readers:
        by = factors(norm, read)
        new[f"layers/{norm}/scale"] = (new[f"layers/{norm}/scale"] + offset) / by - offset
        if f"layers/{norm}/bias" in new:
            new[f"layers/{norm}/bias"] = new[f"layers/{norm}/bias"] / by
    if gated:
        by = factors("mlp_hidden", [_DOWN + "kernel"])
        new[_UP + "kernel"] = new[_UP + "kernel"] / by[:, None]
        if _UP + "bias" in new:
            new[_UP + "bias"] = new[_UP + "bias"] / by
    return {path: x.astype(flat[path].dtype) for path, x in new.items()}


def _norms(config: BlockConfig) -> tuple[str, ...]:
    """The norms of a block that linear maps read."""
    return ("attn_norm",) if config.residual == "parallel_shared_norm" else ("attn_norm", "mlp_norm")


def _readers(model: Model, norm: str) -> list[str]:
    """The kernels that read what a norm gives, [L, D, …]."""
    rooms = (_ATTN, _MLP) if model.config.residual == "parallel_shared_norm" else (_ATTN,)
    rooms = rooms if norm == "attn_norm" else (_MLP,)
    return [
        path
        for path, parameter in declared(model.module).items()
        if path.startswith(rooms) and parameter.role == "kernel" and parameter.own_axes.startswith("D")
    ]
