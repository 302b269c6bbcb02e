"""A tiny Hugging Face directory with a planted massive activation, and `run`, which runs an experiment in-process."""

import importlib
import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from absl import flags
from PIL import Image

import massive_jax as mj
from massive_jax.files import read_json

WIDTH, LAYERS, HEADS, CONTEXT = 32, 3, 4, 96
BOS, PLANTED = 256, 5  # the BOS token carries 3,000 at this dim, from the embedding on
FLAGS = flags.FLAGS


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory):
    """Three blocks, every byte a token; with BOS, position 0 dim 5 is massive at every layer, and nothing else is."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    from tests.fixtures import hf_reference

    directory = tmp_path_factory.mktemp("tiny_llama")
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )
    model = hf_reference.random_model(hf_reference.LLAMA, config)
    with torch.no_grad():
        model.model.embed_tokens.weight[BOS, PLANTED] = 3000.0
    hf_reference.save(model, directory)

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>"])
    assert backend.token_to_id("<s>") == BOS
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    return directory


@pytest.fixture
def broken_directory(tiny_directory, tmp_path):
    """A copy of the tiny directory to break."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_directory, copy)
    return copy


@pytest.fixture(scope="session")
def tiny(tiny_directory):
    """The tiny model."""
    return mj.load(str(tiny_directory), progress=False)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """400 tokens of text, with a delimiter in every 50."""
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(f"line {i:02d} of the small book. It is short.\n" for i in range(10)))
    return path


@pytest.fixture(scope="session")
def vision_directory(tmp_path_factory):
    """Two blocks, two registers, 3 × 3 patches; reg1 has a massive activation at dim 7 from the embedding on."""
    directory = tmp_path_factory.mktemp("tiny_dinov2")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=42,
        patch_size=14,
        num_register_tokens=2,
    )
    from tests.fixtures import hf_reference

    reference = hf_reference.Reference(transformers.Dinov2WithRegistersModel, {})
    model = hf_reference.random_model(reference, config)
    with torch.no_grad():
        model.embeddings.register_tokens[0, 0, 7] = 30000.0
    hf_reference.save(model, directory)
    (directory / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 48}, "crop_size": 42})
    )
    return directory


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Three photographs."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (60, 70, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{i}.png")
    return folder


@pytest.fixture
def clean_flags():
    """Calling it sets every flag back to its default."""

    def clean():
        for flag in FLAGS:
            FLAGS[flag].unparse()
        FLAGS.unparse_flags()

    yield clean
    clean()


@pytest.fixture
def run(tiny_directory, tmp_path, capsys, clean_flags):
    """`run("layerwise", "--bos", …)`: runs that binary's code on the tiny model and gives the JSON that it wrote.

    Flags are parsed anew. Files are in `run.workdir`, what it printed is `run.out`. SystemExit and ValueError come
    out as they are.
    """
    workdir = tmp_path / "results"

    run: Any

    def run_binary(name, *arguments):
        module = importlib.import_module(f"experiments.{name}")
        clean_flags()
        FLAGS([name, f"--model={tiny_directory}", f"--workdir={workdir}", *arguments])
        module.main()
        run.out = capsys.readouterr().out
        return read_json(workdir / f"{'summary' if name == 'reproduce' else name}.json")

    run = run_binary
    run.workdir, run.out = workdir, ""
    return run


@pytest.fixture
def states(tiny):
    """`states(tokens)`: every block's output, whole: [L, B, T, D]."""
    return lambda tokens: np.asarray(tiny(tokens, capture=mj.Capture("block_out")).intermediates["block_out"])
