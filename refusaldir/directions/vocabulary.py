"""Tokens that a direction speaks for and against: its weights on the model's own vocabulary.

With ``W_U`` the unembedding, ``γ`` the gain of the final norm and P its centring (the identity for
an RMS norm), the weight of token t on a direction v is ::

    w_t = W_U[t] · (γ ⊙ P v)

If v is added, times a small ε, to the stream x before the final norm, and x has root mean square
s and is orthogonal to v (and, under a centring norm, has mean 0), the logit of t changes by
ε w_t / s. Biases, softcapping and a scale of all logits play no part; they do not change the order.

The norm is *measured*, not looked up by name: the model runs with the stream after its last block
replaced by ±v and ±1, and what reaches the head is read. Half the difference of the two signs has
no bias in it, and a norm that centres sends a constant vector to nothing. Families that store
1 + γ, or hide the norm somewhere else, need no case of their own.

This reads a direction as if it lay before the final norm (the logit lens). Blocks after the
direction's own layer may read it in other ways, which this does not show.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from refusaldir.errors import DirectionError, ModelLoadError
from refusaldir.geometry import unit
from refusaldir.models.bridge import HookedModel

#: Root mean square of the vectors fed: so large that a norm's ε does not count.
_RMS = 32.0

#: Rows of the unembedding converted to float32 at a time.
_ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class TokenWeight:
    """One token's weight on a direction.

    Attributes:
        id: Token id.
        text: What it decodes to, control characters as they are; the tokenizer's own name for
            it where it is only part of a character.
        weight: ``w_t`` of the module docstring, in logits times residual norm.
    """

    id: int
    text: str
    weight: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"id": self.id, "text": self.text, "weight": self.weight}


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The tokens with the largest and the smallest weight on a direction.

    Attributes:
        top: Largest first.
        bottom: Smallest first.
        spread: Standard deviation of the weights over all tokens, to judge those by.
        n_tokens: Number of tokens compared.
    """

    top: tuple[TokenWeight, ...]
    bottom: tuple[TokenWeight, ...]
    spread: float
    n_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "top": [token.to_dict() for token in self.top],
            "bottom": [token.to_dict() for token in self.bottom],
            "spread": self.spread,
            "n_tokens": self.n_tokens,
        }


def vocabulary(
    model: HookedModel, vector: Float[np.ndarray, " d_model"], *, top: int = 10
) -> Vocabulary:
    """Tokens that a direction raises and lowers most; see the module docstring.

    Args:
        model: The model.
        vector: The direction, raw.
        top: Tokens on either side.

    Raises:
        DirectionError: The vector is zero, not finite, or not of the model's width.
        ModelLoadError: The model has no head, or its final norm is none that can be read.
    """
    weights = token_weights(model, vector)
    # Rows beyond the tokenizer only pad the matrix.
    known = np.array(sorted(set(model.tokenizer.get_vocab().values())))
    known = known[known < len(weights)]
    order = known[np.argsort(weights[known], kind="stable")]

    def token(index: int) -> TokenWeight:
        return TokenWeight(
            id=index, text=_text(model.tokenizer, index), weight=float(weights[index])
        )

    return Vocabulary(
        top=tuple(token(int(i)) for i in order[::-1][:top]),
        bottom=tuple(token(int(i)) for i in order[:top]),
        spread=float(weights[known].std()),
        n_tokens=len(known),
    )


def token_weights(
    model: HookedModel, vector: Float[np.ndarray, " d_model"]
) -> Float[np.ndarray, " vocab"]:
    """``w_t`` of every row of the unembedding, float64.

    Raises:
        DirectionError: As `vocabulary`.
        ModelLoadError: As `vocabulary`.
    """
    if len(vector) != model.d_model:
        raise DirectionError(
            "The direction is not of the model's width",
            expected=f"d_model {model.d_model} ({model.identity.name})",
            got=len(vector),
        )
    head = model.hf.get_output_embeddings()
    if head is None:
        raise ModelLoadError("This model has no output embeddings", where=model.identity.name)
    with torch.no_grad():
        read = _before_head(model, head, vector)
        return _through(head, read).double().cpu().numpy()


def _before_head(model: HookedModel, head: nn.Module, vector: np.ndarray) -> Tensor:
    """``γ ⊙ P v``, float32, on the device of the head's input."""
    direction = unit(vector) * np.sqrt(len(vector)) * _RMS
    ones = np.ones_like(direction)
    rows = torch.from_numpy(np.stack([direction, -direction, 2 * direction, ones, -ones]))
    seen: list[Tensor] = []

    def replace(stream: Tensor) -> Tensor:
        return rows[:, None].to(stream).expand_as(stream).contiguous()

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((*args, *kwargs.values())[0].detach().float()[:, -1])

    handle = head.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with model.hooked({("resid_post", model.n_layers - 1): replace}):
            model.logits(torch.zeros((len(rows), 1), dtype=torch.long, device=model.device))
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ModelLoadError(
            "This model does not use its output embeddings once a step",
            got=f"{len(seen)} uses",
            where=model.identity.name,
        )
    plus, minus, twice, one, minus_one = seen[0]
    # The tolerance is bfloat16's; a stream that is not normalised would give twice the value.
    if float((twice - plus).norm()) > 0.02 * float(plus.norm()):
        raise ModelLoadError(
            "This model's final norm cannot be read",
            expected="one that does not depend on the length of the stream",
            where=model.identity.name,
        )
    read, constant = (plus - minus) / 2, (one - minus_one) / 2
    centres = float(constant.norm()) < 1e-3 * float(read.norm())
    kept = vector - vector.mean() if centres else vector
    # Normalised, the stream had root mean square 1: give it that of P v back.
    size = float(np.sqrt(np.mean(np.square(kept, dtype=np.float64))))
    return torch.mul(read, size)


def _through(head: nn.Module, read: Tensor) -> Tensor:
    """``W_U · read``, in float32 a chunk of tokens at a time where the weights are at hand."""
    matrices = [p for p in head.parameters() if p.dim() == 2]
    if len(matrices) == 1 and matrices[0].is_floating_point() and not matrices[0].is_meta:
        there = read.to(matrices[0].device)
        return torch.cat([rows.float() @ there for rows in torch.split(matrices[0], _ROWS)])
    # Quantised, adapted, or offloaded and fetched for the call: the head itself, less its bias.
    dtype = next((p.dtype for p in matrices if p.is_floating_point()), read.dtype)
    both: Tensor = head(torch.stack([read, -read])[:, None].to(dtype)).float()[:, 0]
    return torch.sub(both[0], both[1]) / 2


def _text(tokenizer: Any, index: int) -> str:
    text = str(tokenizer.decode([index], clean_up_tokenization_spaces=False))
    return str(tokenizer.convert_ids_to_tokens(index)) if not text or "\ufffd" in text else text
