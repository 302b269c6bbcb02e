"""Checkpoints of a training: the state, and with it where the data are and which training it is.

Orbax's v1 API, written in the background: each is whole or not there. Of several processes all call everything here,
and write their parts. Axis letters: see `massive_jax.probe.sites`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from massive_jax.files import Path, absolute
from massive_jax.train.step import TrainState

_KEY = "massive_jax_training"


class Checkpoints:
    """Keeps the checkpoints of one training, the newest `keep` of them."""

    def __init__(self, directory: Path, keep: int):
        """Opens, or makes, the checkpoints in `directory`; what a killed run left half-written there is removed."""
        from orbax.checkpoint import v1 as ocp

        self._directory = directory
        self._checkpointer = ocp.training.Checkpointer(
            str(absolute(directory)),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """Gives the steps done in the newest whole checkpoint; None where there is none."""
        found = self._checkpointer.latest
        return None if found is None else int(found.step)

    def save(self, step: int, state: TrainState, data: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint; returns when the state has been copied and may be used up.

        Args:
          step: steps done.
          state: the state.
          data: state of the data's iterator, a position that is the same in every process.
          config: of the training, as plain JSON.

        Raises:
          ValueError: the one before could not be written.
        """
        with self._in_words():
            self._checkpointer.save_async(
                step, _tree(state), force=True, custom_metadata={_KEY: {"data": dict(data), "config": dict(config)}}
            )

    def wait(self) -> None:
        """Waits until the last checkpoint is written; ValueError where it could not be."""
        with self._in_words():
            self._checkpointer.wait()

    def describe(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads data state and config of the checkpoint of `step`; ValueError where it is none of a training."""
        stored: Any = (self._checkpointer.metadata(step).custom_metadata or {}).get(_KEY)
        if stored is None:
            raise ValueError(f"{self._directory} holds checkpoints of something else; name another --workdir.")
        return stored["data"], stored["config"]

    def load(self, step: int, abstract: TrainState) -> TrainState:
        """Reads the state of the checkpoint of `step`, placed as `abstract` says."""
        tree = self._checkpointer.load(step, _tree(abstract))
        leaves = [tree[name] for name in _tree(abstract)]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        """Waits for what is being written; a failure does not hide one that is on its way already."""
        with self._in_words() if kind is None else contextlib.suppress(Exception):
            self._checkpointer.close()

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        """A failed write as one sentence that says what is still there."""
        try:
            yield
        except Exception as error:  # tensorstore and Orbax raise many types
            last = self.latest
            kept = f"the last whole one is of step {last}" if last is not None else "none is whole yet"
            raise ValueError(
                f"a checkpoint could not be written to {self._directory} ({str(error).splitlines()[0]}); {kept}. "
                "Make room on the disk, and run the same command again to go on from there."
            ) from error


def _tree(state: Any) -> dict[str, Any]:
    """The state as a flat dict with names that do not depend on the classes of the optimiser."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree.leaves_with_path(state)
    }
