"""What `test_processes.py` runs in every process: python pair.py DIRECTORY TOKENS PORT NUMBER COUNT."""

import itertools
import os
import pathlib
import signal
import sys

import jax
from train_shapes import GPT, RECIPE

from massive_jax.train import Preempted, TokenFile, TrainConfig, Trainer, train


def main(directory, tokens, port, number, count):
    if count > 1:
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(f"localhost:{port}", count, number, shutdown_timeout_seconds=20)
    file = TokenFile.open(tokens)
    config = TrainConfig(
        model=GPT,
        optimizer=RECIPE,
        data=file.sha256,
        steps=9,
        batch=8,
        context=16,
        accumulate=2,
        validation=0.1,
        log_every=4,
        eval_every=4,
        census_every=4,
        checkpoint_every=3,
        eval_batches=1,
        census_windows=2,
        mesh=(4, 1),
    )
    train(config, file, directory / "whole", say=lambda line: print(line, flush=True))
    if count == 1:
        return
    original, taken = Trainer.step, itertools.count(1)

    def terminated(self, state, batch):
        if next(taken) == 5 and number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, state, batch)

    Trainer.step = terminated
    try:
        train(config, file, directory / "stopped")
    except Preempted as stopped:
        (directory / f"stopped_{number}").write_text(str(stopped.step))
    Trainer.step = original
    train(config, file, directory / "stopped")
    (directory / f"done_{number}").touch()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
