"""Downloads from the Hugging Face Hub, into its own cache, each failure one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from refusaldir.errors import ModelLoadError, ModelSpecError
from refusaldir.models.quiet import quiet
from refusaldir.models.spec import AdapterRef, close_matches
from refusaldir.models.weights import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_CONFIG

_SMALL = ["*.json", "*.jinja", "*.txt", "*.model", "tokenizer*"]
#: Copies in other formats or layouts, and training states.
_IGNORED = ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx"]


def hub_directory(repo: str, revision: str | None, *, code: bool) -> Path:
    """Download what is needed of a Hub repository: configuration and tokenizer, then weights."""
    small = [*_SMALL, "*.py"] if code else _SMALL
    with quiet():
        directory = _snapshot(repo, revision, small)
    if (directory / ADAPTER_CONFIG).is_file() and not (directory / MODEL_CONFIG).is_file():
        return _snapshot(repo, revision, [*small, ADAPTER_WEIGHTS])
    return _snapshot(repo, revision, [*small, "model*.safetensors"])


def _snapshot(
    repo: str,
    revision: str | None,
    patterns: list[str],
    *,
    ignored: list[str] = _IGNORED,
    shown: str | None = None,
) -> Path:
    from huggingface_hub import snapshot_download

    def download(**options: Any) -> Path:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=ignored,
                **options,
            )
        )

    return _from_hub(download, shown or repo, revision)


def hub_file(where: str, revision: str | None) -> Path:
    """Download one file, named ``org/repo/file``.

    Raises:
        ModelSpecError: The repository has no such file, or cannot be reached.
    """
    org, name, file = where.split("/", 2)
    # A snapshot of one file: downloading a file by itself retries for long where it cannot work.
    path = _snapshot(f"{org}/{name}", revision, [file], ignored=[], shown=where) / file
    if not path.is_file():
        raise ModelSpecError("The Hub has this repository, but not this file", where=where)
    return path


def _from_hub(download: Callable[..., Path], where: str, revision: str | None) -> Path:
    """Run a download and turn what can go wrong into one sentence."""
    from huggingface_hub import errors

    shown = str(AdapterRef(where=where, revision=revision))
    try:
        path = download(etag_timeout=10)
    except errors.GatedRepoError as error:
        raise ModelSpecError(
            "Access to this model must be granted on the Hub first",
            where=shown,
            next_step="Ask for access on the model's page, then log in with: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelSpecError(
            "The Hub has this model, but not this revision", where=shown
        ) from error
    except errors.LocalEntryNotFoundError as error:
        offline = isinstance(error.__cause__, errors.OfflineModeIsEnabled)
        near = close_matches(where)
        raise ModelSpecError(
            "There is no such local path, and the Hub "
            + ("is switched off" if offline else "cannot be reached"),
            got="HF_HUB_OFFLINE is set and the model is not in the Hub's local cache"
            if offline
            else f"{error.__cause__ or 'no connection'}, and not in the Hub's local cache",
            where=shown,
            next_step=f"Did you mean {' or '.join(near)}"
            if near
            else "Download it elsewhere and give its directory, or use smollm2-135m",
        ) from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        near = close_matches(where)
        raise ModelSpecError(
            "There is no such local path and no such model on the Hub",
            where=shown,
            next_step=f"Did you mean {' or '.join(near)}"
            if near
            else "If it is private, log in with: hf auth login",
        ) from error
    except errors.HfHubHTTPError as error:
        raise ModelSpecError(
            "The Hub refused", got=str(error).splitlines()[0], where=shown
        ) from error
    except OSError as error:
        raise ModelLoadError(
            "The download failed", got=error.strerror or error, where=shown
        ) from error
    return path
