import dataclasses

import numpy as np
import pytest

from massive_jax.inputs.tokenizer import Tokenizer
from massive_jax.train import TrainConfig, prepare_tokens
from tests.fixtures.train_shapes import GPT, RECIPE


@pytest.fixture(scope="session")
def token_file(tmp_path_factory):
    """3,000 bytes of text, a token each."""
    rng = np.random.default_rng(0)
    text = "".join(chr(c) for c in rng.choice(np.arange(97, 107), 3000, p=np.arange(1, 11) / 55))
    path = tmp_path_factory.mktemp("data") / "text.bin"
    return prepare_tokens(text, path, Tokenizer.of_bytes(), text_name="letters", tokenizer_name="bytes")


@pytest.fixture(scope="session")
def make_config(token_file):
    """`make_config(**changes)`: nine steps of the tiny nanoGPT."""
    config = TrainConfig(
        model=GPT,
        optimizer=RECIPE,
        data=token_file.sha256,
        steps=9,
        batch=4,
        context=16,
        accumulate=2,
        validation=0.1,
        log_every=2,
        eval_every=4,
        census_every=4,
        checkpoint_every=3,
        eval_batches=1,
        census_windows=2,
    )
    return lambda **changes: dataclasses.replace(config, **changes)
