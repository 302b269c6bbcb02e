"""Fixtures that several test files share. Compiling is what takes time here: most tests run on one tiny model."""

import atexit
import contextlib
import ctypes
import dataclasses
import gc
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import Any

# Programs are compiled without LLVM's optimisations and by the older of XLA's two code generators for fused loops:
# compiling takes longer than running a tiny model, and this is half the processor time of parity and edit tests. Nor is
# the code of a program dealt out to threads: the tests fill the processors by themselves. Before jax is imported;
# processes that tests start inherit it.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
)
# Every program is compiled once in a run of the tests: the first process makes a directory for what is compiled, which
# xdist's workers and the processes that tests start inherit, and removes it at its end.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="massive_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Nor does each of the processes that tests start compile the package's Python anew: git ignores where it is kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import jax
import numpy as np
import pytest

import massive_jax as mj
from massive_jax.inputs.tokenizer import Tokenizer
from tests.fixtures.tiny import BOS, TINY, TINY_VISION, random_model

# Of a million objects most are of packages and stay: looking through them all again and again was 8 % of the time.
gc.set_threshold(20_000, 20, 20)


def pytest_collection_finish():
    gc.freeze()


@pytest.fixture
def start(tmp_path):
    """`start(devices, *arguments)`: a Python with so many devices of a CPU; what it says is in a file, `.said()`.

    `cwd=` is its directory. `start.free_port()` is one where processes can meet.
    """
    started = []

    def start(devices, *arguments, cwd=None):
        log = tmp_path / f"log_{len(started)}"
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
            "--xla_llvm_disable_expensive_passes=true",  # to compile is most of the work
            "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)]),
        }
        with log.open("w") as file:
            command = [sys.executable, *map(str, arguments)]
            process: Any = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=cwd)
        process.said = log.read_text
        started.append(process)
        return process

    def free_port():
        with socket.socket() as found:
            found.bind(("localhost", 0))
            return found.getsockname()[1]

    start.free_port = free_port  # type: ignore[attr-defined]
    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def default_model():
    """The default model, with its real weights."""
    return mj.load("smollm2_135m", progress=False)


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Every byte is a token: token ids of ASCII text are its character codes."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    from massive_jax.inputs.tokenizer import _byte_of_character

    vocabulary = dict(_byte_of_character())
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>"])
    assert backend.token_to_id("<s>") == BOS
    return Tokenizer(backend, bos_id=BOS)


@pytest.fixture(scope="session")
def make_model(byte_tokenizer):
    """Builds a random language model: `make_model(**changes)` of `TINY`."""

    def make(seed: int = 0, **changes) -> mj.Model:
        return random_model(dataclasses.replace(TINY, **changes), seed, tokenizer=byte_tokenizer)

    return make


@pytest.fixture(scope="session")
def tiny_vision():
    """Three blocks of width 32, class token, two registers, 4 × 4 patches of 7 × 7 pixels, a head of 5 classes."""
    return random_model(TINY_VISION)


@pytest.fixture(scope="session")
def make_vision():
    """Builds a random vision model: `make_vision(**changes)` of `TINY_VISION`."""
    return lambda seed=0, **changes: random_model(dataclasses.replace(TINY_VISION, **changes), seed)


@pytest.fixture(scope="session")
def tiny_images():
    """float32 [2, 28, 28, 3]."""
    return np.random.default_rng(1).normal(size=(2, 28, 28, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def tiny_model(make_model):
    """Four blocks of width 32 with grouped heads, random parameters, float32."""
    return make_model()


@pytest.fixture(scope="session")
def tiny_tokens():
    """int32 [2, 9]."""
    return np.random.default_rng(1).integers(0, BOS, size=(2, 9), dtype=np.int32)


_COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **kwargs: _COMPILED.append(event) if event.endswith("backend_compile_duration") else None
)


_MOST_MAPS = 30_000  # of the 65,530 that Linux gives a process; a program takes 170 and more
_MOST_GROWTH = 1_500_000_000  # bytes that a process may have grown by since programs were last forgotten
_looked_at = 0
_resident = 0


def _resident_bytes() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def _room_for_programs():
    """Forgets compiled programs before they are too many.

    Each has memory maps, and without any the process dies; and a long run's programs are gigabytes, which malloc gives
    back when it is asked to.
    """
    global _looked_at, _resident
    yield
    if len(_COMPILED) < _looked_at + 30 or not pathlib.Path("/proc/self/maps").is_file():
        return
    _looked_at = len(_COMPILED)
    _resident = _resident or _resident_bytes()
    maps = pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
    if maps > _MOST_MAPS or _resident_bytes() > _resident + _MOST_GROWTH:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # another C library has no malloc_trim
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        _resident = _resident_bytes()


@pytest.fixture
def compilations():
    """Calling it gives the number of programs that jax has compiled, or read back, since the test began."""
    before = len(_COMPILED)
    return lambda: len(_COMPILED) - before
