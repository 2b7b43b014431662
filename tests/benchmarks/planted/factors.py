"""Low-rank changes of a llama's matrices: as factors in memory, and as PEFT adapters on disk.

A change is a dict from (layer, matrix name) to ``(b, a)``, ``ΔW = b @ a``, in float64.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from safetensors.numpy import load_file, save_file

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

Change = dict[tuple[int, str], tuple[np.ndarray, np.ndarray]]


def component_of(matrix):
    """``"attn"`` or ``"mlp"``."""
    return "attn" if matrix in ATTENTION else "mlp"


def module_name(layer, matrix):
    """Path of a matrix within a llama."""
    block = "self_attn" if component_of(matrix) == "attn" else "mlp"
    return f"model.layers.{layer}.{block}.{matrix}"


def parameter(hf, layer, matrix):
    """The weight itself."""
    return hf.get_submodule(module_name(layer, matrix)).weight


def values(hf, layer, matrix):
    """A copy of the weight, float64 ``[out, in]``."""
    return parameter(hf, layer, matrix).detach().double().numpy()


def norm(b, a):
    """Frobenius norm of ``b @ a``, the product not formed."""
    return float(np.sqrt(max(np.sum((b.T @ b) * (a @ a.T)), 0.0)))


def layer_norms(change: Mapping) -> dict[int, float]:
    """``√Σ‖ΔW‖²`` over the matrices of each layer."""
    squares: dict[int, float] = {}
    for (layer, _), (b, a) in change.items():
        squares[layer] = squares.get(layer, 0.0) + norm(b, a) ** 2
    return {layer: float(np.sqrt(squares[layer])) for layer in sorted(squares)}


def relative_norms(hf, change: Mapping) -> dict[int, float]:
    """``√(Σ‖ΔW‖² / Σ‖W‖²)`` over the matrices of each layer that changed."""
    weights: dict[int, float] = {}
    for layer, matrix in change:
        weights[layer] = weights.get(layer, 0.0) + float((values(hf, layer, matrix) ** 2).sum())
    norms = layer_norms(change)
    return {layer: norms[layer] / float(np.sqrt(weights[layer])) for layer in norms}


def scaled(change: Mapping, factor) -> Change:
    """The change times a number."""
    return {key: (factor * b, a) for key, (b, a) in change.items()}


@contextmanager
def applied(hf, *changes: Mapping) -> Iterator[None]:
    """Add changes to the weights; after the context they are bit for bit as before."""
    kept = {}
    with torch.no_grad():
        for change in changes:
            for (layer, matrix), (b, a) in change.items():
                weight = parameter(hf, layer, matrix)
                kept.setdefault((layer, matrix), weight.detach().clone())
                weight += torch.from_numpy(b @ a).to(weight.dtype)
    try:
        yield
    finally:
        with torch.no_grad():
            for (layer, matrix), weight in kept.items():
                parameter(hf, layer, matrix).copy_(weight)


def write_adapter(directory: Path, change: Mapping, base: str) -> None:
    """Write a change as a LoRA adapter of scaling 1 in float32; same matrices in every layer.

    Ranks may differ between matrices; within one, smaller ranks are filled up with zeros.
    """
    layers = sorted({layer for layer, _ in change})
    matrices = sorted({matrix for _, matrix in change})
    if set(change) != {(layer, matrix) for layer in layers for matrix in matrices}:
        raise ValueError("an adapter has the same matrices in every layer")
    ranks = {m: max(change[layer, m][1].shape[0] for layer in layers) for m in matrices}
    tensors = {}
    for (layer, matrix), (b, a) in change.items():
        missing = ranks[matrix] - a.shape[0]
        path = f"base_model.model.{module_name(layer, matrix)}"
        for half, tensor in (
            ("A", np.pad(a, ((0, missing), (0, 0)))),
            ("B", np.pad(b, ((0, 0), (0, missing)))),
        ):
            tensors[f"{path}.lora_{half}.weight"] = np.ascontiguousarray(tensor, dtype=np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    largest = max(ranks.values())
    LoraConfig(
        r=largest,
        lora_alpha=largest,
        rank_pattern=ranks,
        alpha_pattern=ranks,
        target_modules=matrices,
        layers_to_transform=layers,
        base_model_name_or_path=base,
        inference_mode=True,
        task_type="CAUSAL_LM",
    ).save_pretrained(directory)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def read_adapter(directory: Path) -> Change:
    """Read what `write_adapter` wrote."""
    tensors = load_file(directory / "adapter_model.safetensors")
    change: Change = {}
    for name, a in tensors.items():
        if ".lora_A." in name:
            parts = name.split(".")
            key = (int(parts[parts.index("layers") + 1]), parts[-3])
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            change[key] = (b.astype(np.float64), a.astype(np.float64))
    return change
