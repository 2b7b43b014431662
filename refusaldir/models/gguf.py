"""GGUF files: dequantised once by transformers, kept in the cache as safetensors.

Dequantising K-quants takes a minute and more, so it is done once per content.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refusaldir.errors import ModelLoadError, RefusaldirError
from refusaldir.models.cache import build_once, sha256_file

#: Raised when the way of converting changes, so that older conversions are not reused.
CONVERSION = 1


def converted(path: Path) -> Path:
    """Return a directory with a GGUF file's model and tokenizer, converting it if needed.

    Weights are stored in the narrowest of bfloat16, float16 and float32 that holds every
    dequantised value exactly.

    Args:
        path: The GGUF file.

    Raises:
        ModelLoadError: Not a GGUF file, an architecture that transformers cannot read from GGUF,
            or a cache that cannot be written.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelLoadError(
                "This is not a GGUF file",
                expected="a file that begins with 'GGUF'",
                where=path,
                next_step="Download or save it again",
            )
    return converted_from(sha256_file(path), lambda _: path)


def converted_from(sha256: str, fetch: Callable[[Path], Path]) -> Path:
    """Like `converted`, for a file that need not be at hand unless it must be converted.

    Args:
        sha256: Hash of the GGUF file.
        fetch: Called with an empty temporary directory; returns the path of the GGUF file.
    """
    import tempfile

    def build(target: Path) -> dict[str, str]:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as work:
            source = fetch(Path(work))
            convert(source, target)
            return {"source_sha256": sha256, "source_name": source.name}

    return build_once(f"gguf-{sha256[:24]}-v{CONVERSION}", build)


def convert(source: Path, target: Path) -> None:
    """Dequantise a GGUF file into a directory of safetensors, configuration and tokenizer.

    Args:
        source: The GGUF file.
        target: An existing directory.

    Raises:
        ModelLoadError: transformers cannot read it.
    """
    import tempfile

    import torch

    from refusaldir.models.quiet import quiet

    with quiet(), tempfile.TemporaryDirectory() as work:
        # Alone in a directory, so that no other file beside it is taken for part of the model.
        directory, name = Path(work), "model.gguf"
        try:
            (directory / name).symlink_to(source.resolve())
        except OSError:  # no symbolic links here
            directory, name = source.parent, source.name
        try:
            tokenizer, model = _read(directory, name)
        except RefusaldirError:
            raise
        except Exception as error:
            raise ModelLoadError(
                "transformers cannot read this GGUF file",
                got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                where=source,
                next_step="Convert it to safetensors with the tool that made it",
            ) from error
        for dtype in (torch.bfloat16, torch.float16):
            if all(_is_exact(value, dtype) for value in model.state_dict().values()):
                model = model.to(dtype)
                break
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _read(directory: Path, name: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory), gguf_file=name)
    model, info = AutoModelForCausalLM.from_pretrained(
        str(directory), gguf_file=name, dtype=torch.float32, output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelLoadError(
            "The GGUF file lacks weights of the model",
            got=f"no {', '.join(missing[:3])}" + (", ..." if len(missing) > 3 else ""),
        )
    # The weights are plain now; what is left of the quantiser would break saving and loading.
    with contextlib.suppress(AttributeError):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    return tokenizer, model


def _is_exact(value: Any, dtype: Any) -> bool:
    """Whether a tensor survives a round trip through a narrower dtype."""
    if not value.is_floating_point():
        return True
    return bool((value.to(dtype).to(value.dtype) == value).all())
