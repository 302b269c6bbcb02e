"""Packaging. `pip install -e .[test]` is all a developer needs; see BUILD.md for GPU and TPU."""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

DATA = ["datasets>=3.0"]
TEST = [
    "hypothesis>=6.100",
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.15",
    "mypy>=1.18",
    "sentencepiece>=0.2",
    # Parity with Hugging Face only; nothing in `massive_jax/` imports it. Pinned: an open range resolves to
    # builds with several gigabytes of CUDA libraries.
    "torch==2.13.0",
    *DATA,
]

setuptools.setup(
    name="massive_jax",
    version="0.1.0",
    description="Massive activations in transformers: a Flax model zoo with taps, edits and attention bias.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["massive_jax*", "experiments*", "checkpoints"]),
    package_data={"massive_jax.zoo.atlas": ["atlas.json"]},
    install_requires=[
        "absl-py>=2.1",
        "chex>=0.1.89",
        "filelock>=3.13",
        "flax>=0.12",
        "gguf>=0.17",
        "grain>=0.2.11",
        "huggingface_hub>=1.0",
        "jax>=0.10",
        "matplotlib>=3.9",
        "ml_dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow>=11.3",
        "safetensors>=0.5",
        "tensorboardX>=2.6",
        "tensorstore>=0.1.84",
        "tokenizers>=0.22",
        "tqdm>=4.66",
        "transformers>=5.0",
        "xxhash>=3.4",
    ],
    extras_require={
        "data": DATA,
        "test": TEST,
        "gpu": ["jax[cuda12]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
    },
)
