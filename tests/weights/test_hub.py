import os
import subprocess
import sys
import types

import huggingface_hub
import pytest
from huggingface_hub import errors

from massive_jax.weights import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def home(tmp_path):
    """HF_HOME with one model in the hub's own layout."""
    model = tmp_path / "hub" / "models--some--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return tmp_path


def run(code, home, **environment):
    """The library reads its environment on import, so in a process of its own."""
    environment = {**os.environ, "HF_HOME": str(home), **environment}
    environment.pop("HF_HUB_CACHE", None)
    program = (
        "from massive_jax.weights.hub import snapshot\n"
        f"try:\n  print({code})\n"
        "except ValueError as error:\n  print('ERROR', error)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_what_is_cached_is_used_without_a_network(home, environment):
    expected = str(home / "hub" / "models--some--model" / "snapshots" / COMMIT)
    assert run("snapshot('some/model')", home, **environment) == expected


def test_a_cached_commit_can_be_named(home):
    expected = str(home / "hub" / "models--some--model" / "snapshots" / COMMIT)
    assert run(f"snapshot('some/model', '{COMMIT}')", home, HF_HUB_OFFLINE="1") == expected


def test_not_cached_says_what_to_do(home):
    message = run("snapshot('some/other')", home, HF_HUB_OFFLINE="1")
    assert message.startswith("ERROR hub model 'some/other' is not in the local cache")
    assert "HF_HUB_OFFLINE" in message
    assert "load the directory by its path" in message
    assert str(home) in message


@pytest.mark.parametrize("name", ["a/b/c", "../etc", "", "a b", "-x/y", None, 3])
def test_malformed_names(name):
    with pytest.raises(ValueError, match="Write it as 'owner/name'"):
        hub.snapshot(name)


def http_error(kind):
    # A stand-in for the response: which HTTP client the hub package uses changes between its versions.
    return kind("said the hub", response=types.SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (lambda: http_error(errors.GatedRepoError), "accept its licence.*HF_TOKEN"),
        (lambda: http_error(errors.RepositoryNotFoundError), "not found. Check the spelling.*HF_TOKEN"),
        (lambda: http_error(errors.RevisionNotFoundError), "revision 'v9'.*no such revision"),
        (lambda: http_error(errors.HfHubHTTPError), "could not be downloaded.*said the hub"),
        (lambda: errors.LocalEntryNotFoundError("x"), "not in the local cache"),
        (lambda: errors.IncompleteSnapshotError("x", snapshot_path="y"), "not whole in the local cache"),
        (lambda: ConnectionError("refused"), "could not be downloaded.*refused.*load the directory"),
        (lambda: OSError(28, "No space left on device"), "No space left on device.*the disk"),
    ],
)
def test_failures_are_value_errors_with_a_remedy(monkeypatch, error, says):
    def fail(*args, **kwargs):
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=says):
        hub.snapshot("some/model", "v9")


def test_only_safe_files_are_asked_for(monkeypatch, tmp_path):
    asked = {}

    def record(repo_id, **kwargs):
        asked.update(kwargs)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    assert hub.snapshot("some/model", "main") == tmp_path
    assert asked["revision"] == "main"
    offered = [
        "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json",
        "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "merges.txt", "vocab.json",
        "preprocessor_config.json", "pytorch_model.bin", "modeling_evil.py", "model.gguf", "x.pt",
    ]  # fmt: skip
    kept = set(huggingface_hub.utils.filter_repo_objects(offered, allow_patterns=asked["allow_patterns"]))
    assert set(offered) - kept == {"pytorch_model.bin", "modeling_evil.py", "model.gguf", "x.pt"}
