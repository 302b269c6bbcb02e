"""Training a language model on tokens. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from massive_jax.files import Path
from massive_jax.inputs.tokenizer import Tokenizer
from massive_jax.models import LanguageModel
from massive_jax.parallel import process_part
from massive_jax.train.census import take_census
from massive_jax.train.config import TrainConfig
from massive_jax.train.data import RandomWindows, TokenFile, batches_of, even_windows
from massive_jax.train.loop import Task, Trained, mesh_of, run
from massive_jax.train.metrics import flops_per_token
from massive_jax.train.step import Trainer
from massive_jax.weights.checkpoint import save_params


def train(
    config: TrainConfig, file: TokenFile, workdir: Path, *, say: Callable[[str], Any] = lambda line: None
) -> Trained:
    """Trains a language model on a token file; see `massive_jax.train.run` for `workdir`, `say` and how it goes on.

    Raises:
      ValueError: data that do not fit the model or the context; and as `massive_jax.train.run`.
      Preempted: SIGTERM.
    """
    return run(NextTokenTask(config, file), workdir, say=say)


class NextTokenTask(Task):
    """Describes the training of a language model on a token file."""

    config: TrainConfig
    unit = "tokens"

    def __init__(self, config: TrainConfig, file: TokenFile):
        """Checks that the file fits the training.

        Raises:
          ValueError: it is another file, its vocabulary is larger than the model's, or it is too short.
        """
        if file.sha256 != config.data:
            raise ValueError(f"the training is of data {config.data[:12]}…, and {file.path} is {file.sha256[:12]}….")
        file.check_vocabulary(config.model.vocab_size)
        self.config, self._file = config, file
        self._training, held_out = file.split(config.validation, config.context)
        self._micro = config.batch // config.accumulate
        self._held_out = even_windows(
            file,
            held_out,
            context=config.context,
            count=max(config.census_windows, config.eval_batches * self._micro),
            bos=config.bos,
        )
        module = LanguageModel(config.model, config.remat, config.unroll)
        self.trainer = Trainer(module, config.optimizer, config.accumulate, mesh_of(config), ema=config.ema)
        self.units = config.batch * config.context
        self.flops = flops_per_token(config.model, config.context)

    def batch(self, step: int) -> np.ndarray:
        """Gives the whole batch of a step, from 0, int32 [B, T + 1]: what `batches` gives, without grain."""
        config = self.config
        windows = RandomWindows(self._file, self._training, config.context, config.seed, config.bos)
        return np.stack([windows[step * config.batch + i] for i in range(config.batch)])

    def batches(self) -> Any:
        """Gives the batches of this process, an iterator of grain, from step 0 on."""
        number, count = process_part(self.trainer.mesh)
        return batches_of(
            self._file,
            self._training,
            context=self.config.context,
            batch=self.config.batch // count,
            seed=self.config.seed,
            shard=(number, count),
            bos=self.config.bos,
        )

    def validate(self, params: Any) -> dict[str, float]:
        """Measures the loss on held-out windows, in nats a token."""
        size = self._micro
        losses = [
            float(self.trainer.loss(params, self._held_out[i * size : (i + 1) * size]))
            for i in range(self.config.eval_batches)
        ]
        return {"validation_loss": float(np.mean(losses))}

    def census(self, params: Any) -> list[dict[str, Any]]:
        """Takes the census of held-out windows."""
        windows = self._held_out[: self.config.census_windows, :-1]
        return take_census(LanguageModel(self.config.model), params, windows)

    def save(self, directory: Path, params: Any) -> None:
        """Writes the model, with the file's tokenizer, for `massive_jax.load`."""
        file = self._file
        tokenizer = None if file.tokenizer is None else Tokenizer.from_json(file.tokenizer)
        if tokenizer is not None and self.config.bos is not None:
            tokenizer.bos_id = self.config.bos
        provenance = {"training": self.config.described(), "text": file.text, "tokenizer": file.tokenizer_name}
        model = dataclasses.replace(self.config.model, attention_kernel="xla", dtype="float32")
        save_params(str(directory), model, params, tokenizer=tokenizer, provenance=lambda: provenance)
