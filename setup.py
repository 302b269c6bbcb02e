"""The installer's entry point. What there is to say is in pyproject.toml; BUILD.md for GPU and TPU."""

import setuptools

setuptools.setup()
