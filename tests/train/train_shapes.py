"""The tiny nanoGPT that tests of training use."""

import dataclasses

from massive_jax.train import OptimizerConfig
from massive_jax.zoo import nanogpt
from massive_jax.zoo.fields import Fields

SHAPE = {"vocab_size": 256, "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "bias": False}
GPT = nanogpt.config(Fields(SHAPE, "tiny"))
BIASED = nanogpt.config(Fields({**SHAPE, "bias": True}, "tiny"))
RECIPE = OptimizerConfig(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=3, decay_steps=20)


def gpt(**changes):
    return dataclasses.replace(GPT, **changes)
