"""Checkpoints from the Hugging Face hub, as a local directory.

`huggingface_hub` does the work, so its environment applies: HF_TOKEN (private and gated models), HF_HOME or
HF_HUB_CACHE (where files are kept), HF_HUB_OFFLINE=1 (never ask the network), HF_ENDPOINT (a mirror).
"""

from __future__ import annotations

from pathlib import Path

# Weights as safetensors, configuration and tokenizers. No pickles and no Python files: none would be used.
PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "*.model",
    "vocab.json",
    "merges.txt",
)
_LOCAL = "or download it elsewhere and load the directory by its path"


def snapshot(repo_id: str, revision: str | None = None) -> Path:
    """Downloads a hub model's files unless they are already there, and gives their directory.

    Without a network, the last downloaded snapshot is used.

    Args:
      repo_id: "owner/name".
      revision: a branch, tag or commit; None for the default branch.

    Raises:
      ValueError: the name is malformed, the model or revision does not exist, access is refused, or it is not
        cached and the network is out of reach. The message says what to do.
    """
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import validate_repo_id

    what = f"hub model {repo_id!r}" + (f" at revision {revision!r}" if revision is not None else "")
    try:
        if not isinstance(repo_id, str) or not isinstance(revision, str | None):
            raise errors.HFValidationError("both are strings.")
        validate_repo_id(repo_id)
        return Path(huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(PATTERNS)))
    except errors.HFValidationError as error:
        raise ValueError(f"{what} is not a name the hub can have: {error} Write it as 'owner/name'.") from None
    except errors.GatedRepoError:
        raise ValueError(
            f"{what} is gated: accept its licence on the model's page with your account, then set HF_TOKEN to a"
            f" read token of that account; {_LOCAL}."
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(
            f"{what}: there is no such revision. Look on the model's page for its branches and tags."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"{what} was not found. Check the spelling; if it is private, set HF_TOKEN to a token that may read it."
        ) from None
    except errors.LocalEntryNotFoundError as error:
        partly = " whole" if isinstance(error, errors.IncompleteSnapshotError) else ""
        raise ValueError(
            f"{what} is not{partly} in the local cache, and the hub cannot be reached or HF_HUB_OFFLINE is set."
            f" Connect (unset HF_HUB_OFFLINE) and run again, {_LOCAL}. Cache: {_cache()}"
        ) from None
    except Exception as error:
        # The HTTP client's own classes (they change between versions), a full disk, a broken cache.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{what} could not be downloaded: {type(error).__name__}: {reason}. Check the network, HF_TOKEN and"
            f" the disk, then run again; {_LOCAL}. Cache: {_cache()}"
        ) from error


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
