"""Which tensor of a checkpoint is which matrix, and how it meets the residual stream.

Every matrix of a block either reads the stream, through a norm, or writes to it. Some
architectures put a second norm behind the matrix that writes (Gemma 2 and 3). Fused matrices
(Phi-3's ``qkv_proj`` and ``gate_up_proj``, GPT-2's ``c_attn``, GPT-NeoX's ``query_key_value``) are
one matrix here, as they are on disk.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from refusaldir.errors import ModelSpecError

Component = Literal["attn", "mlp"]
Side = Literal["reads", "writes"]

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.(.+)")
_PREFIX = re.compile(r"(?:(?:base_model|model|transformer|gpt_neox|language_model)\.)+")
_OTHER_MODALITY = re.compile(r"vision|visual|audio|multi_modal")
#: Masks and rotary tables that old checkpoints carry; none is learned.
_BUFFER = re.compile(r"(?:attn|attention)\.(?:masked_)?bias|.*rotary_emb\.inv_freq")


class TensorKey(NamedTuple):
    """A tensor's place in the model, the same under any prefix of its name.

    Attributes:
        layer: Block index from 0, or None outside the blocks.
        leaf: Name within the block (``"self_attn.q_proj.weight"``) or within the model.
    """

    layer: int | None
    leaf: str

    @property
    def is_buffer(self) -> bool:
        """Whether this is a constant of the architecture rather than a weight."""
        return self.layer is not None and _BUFFER.fullmatch(self.leaf) is not None

    def __str__(self) -> str:
        """Return e.g. ``layer 3 self_attn.q_proj.weight``."""
        return self.leaf if self.layer is None else f"layer {self.layer} {self.leaf}"


def tensor_key(name: str) -> TensorKey:
    """The place of a tensor, from its name in a checkpoint or (module first) in an adapter."""
    block = None if _OTHER_MODALITY.search(name) else _BLOCK.search(name)
    if block is not None:
        return TensorKey(int(block[1]), block[2])
    prefix = _PREFIX.match(name)
    return TensorKey(None, name if prefix is None else name[prefix.end() :])


@dataclass(frozen=True, kw_only=True)
class MatrixPlace:
    """How one matrix of a block meets the residual stream.

    Attributes:
        component: ``"attn"`` or ``"mlp"``.
        name: Of the matrix within the component, e.g. ``"q_proj"`` or ``"experts.1.w2"``.
        side: Whether it reads the stream or writes to it.
        norm: Leaf of the norm between the stream and the matrix, or None.
    """

    component: Component
    name: str
    side: Side
    norm: str | None


@dataclass(frozen=True, kw_only=True)
class Family:
    """Architectures that name and wire their blocks alike.

    Attributes:
        rules: Pattern of the module within the block, component, side, module of the norm.
        transposed: Whether weights are stored ``[in, out]`` (Conv1D).
        centred: Whether the norms subtract the mean (LayerNorm).
        gain_offset: What is added to a stored gain: 1 for Gemma.
    """

    rules: tuple[tuple[str, Component, Side, str | None], ...]
    transposed: bool = False
    centred: bool = False
    gain_offset: float = 0.0

    def place(self, key: TensorKey) -> MatrixPlace | None:
        """How a tensor meets the stream, or None if no rule names it."""
        if key.layer is None or not key.leaf.endswith(".weight"):
            return None
        module = key.leaf.removesuffix(".weight")
        for pattern, component, side, norm in self.rules:
            if re.fullmatch(pattern, module):
                return MatrixPlace(
                    component=component,
                    name=module.split(".", 1)[1],
                    side=side,
                    norm=None if norm is None else f"{norm}.weight",
                )
        return None


def _llama_like(
    *, mlp_norm: str, attn_post: str | None = None, mlp_post: str | None = None, offset: float = 0.0
) -> Family:
    expert = r"mlp\.(?:experts\.\d+\.|shared_expert\.)?"
    mixtral = r"block_sparse_moe\.experts\.\d+\."
    router = r"(?:mlp|block_sparse_moe)\.gate|mlp\.shared_expert_gate"
    return Family(
        rules=(
            (r"self_attn\.(?:q|k|v|qkv)_proj", "attn", "reads", "input_layernorm"),
            (r"self_attn\.o_proj", "attn", "writes", attn_post),
            (rf"{expert}(?:gate|up|gate_up)_proj", "mlp", "reads", mlp_norm),
            (rf"{mixtral}w[13]|{router}", "mlp", "reads", mlp_norm),
            (rf"{expert}down_proj|{mixtral}w2", "mlp", "writes", mlp_post),
        ),
        gain_offset=offset,
    )


_LLAMA = _llama_like(mlp_norm="post_attention_layernorm")
_GEMMA = _llama_like(mlp_norm="post_attention_layernorm", offset=1.0)
_GEMMA2 = _llama_like(
    mlp_norm="pre_feedforward_layernorm",
    attn_post="post_attention_layernorm",
    mlp_post="post_feedforward_layernorm",
    offset=1.0,
)
_GPT2 = Family(
    rules=(
        (r"attn\.c_attn", "attn", "reads", "ln_1"),
        (r"attn\.c_proj", "attn", "writes", None),
        (r"mlp\.c_fc", "mlp", "reads", "ln_2"),
        (r"mlp\.c_proj", "mlp", "writes", None),
    ),
    transposed=True,
    centred=True,
)
_NEOX = Family(
    rules=(
        (r"attention\.query_key_value", "attn", "reads", "input_layernorm"),
        (r"attention\.dense", "attn", "writes", None),
        (r"mlp\.dense_h_to_4h", "mlp", "reads", "post_attention_layernorm"),
        (r"mlp\.dense_4h_to_h", "mlp", "writes", None),
    ),
    centred=True,
)

#: By the ``model_type`` of a configuration.
FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3"), _LLAMA),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), _LLAMA),
    "gemma": _GEMMA,
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), _GEMMA2),
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
}


def family_of(model_type: str, names: Sequence[str], *, where: object) -> Family:
    """The family of an architecture.

    Args:
        model_type: As the configuration states it.
        names: Names of the tensors, for the error.
        where: The model, for the error.

    Raises:
        ModelSpecError: It is not one of `FAMILIES`.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    raise ModelSpecError(
        "It is not known which matrices of this architecture read and write the residual stream",
        expected=", ".join(FAMILIES),
        got=f"{model_type!r} with tensors such as {', '.join(list(names)[:3])}",
        where=where,
    )
