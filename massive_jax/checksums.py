"""Checksums of texts and arrays: what says whether something begun before was of the same."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import xxhash

from massive_jax.parallel import whole


def checksum(*things: Any) -> str:
    """Gives the checksum of texts and of trees of arrays. Called by all processes, where arrays are split over them."""
    found = xxhash.xxh3_128()
    for thing in things:
        for path, leaf in jax.tree_util.tree_leaves_with_path(thing):
            array = None if isinstance(leaf, str) else np.ascontiguousarray(whole(leaf))
            kind = leaf if array is None else f"{array.dtype}{array.shape}"
            found.update(f"{jax.tree_util.keystr(path)}{kind}".encode())
            if array is not None:
                found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def model_checksum(config: Any, params: Any) -> str:
    """Gives the checksum of a model: of its options and its parameters, whatever it is called."""
    return checksum(repr(config), params)
