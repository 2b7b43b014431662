"""Whether the tensors at a model's hook points are what they are called.

Names of modules only suggest which tensor is which; sums prove it. No import of transformers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from refusaldir.records import HOOKS


def additive(
    names: set[str], seen: Mapping[tuple[str, int], Tensor], n_layers: int
) -> frozenset[str]:
    """The hook points that keep to ``pre + attn = mid``, ``mid + mlp = post`` in every layer."""
    pre, attn, mid, mlp, post = (
        [seen.get((hook, layer)) for layer in range(n_layers)] for hook in HOOKS
    )

    def adds_up(*terms: list[Tensor | None]) -> bool:
        return all(_is_sum(*layer) for layer in zip(*terms, strict=True))

    good = {"resid_pre", "resid_post"}
    if {"attn_out", "resid_mid"} <= names and adds_up(mid, pre, attn):
        good |= {"attn_out", "resid_mid"}
        if "mlp_out" in names and adds_up(post, mid, mlp):
            good.add("mlp_out")
    elif {"attn_out", "mlp_out"} <= names and adds_up(post, pre, attn, mlp):
        good |= {"attn_out", "mlp_out"}
    return frozenset(good)


def _is_sum(total: Tensor | None, *parts: Tensor | None) -> bool:
    """Whether parts add up to the total, within rounding of the model's dtype.

    The residue is compared with the smallest of the parts after the first, so that a wrong small
    contribution is seen beside a large stream; entry by entry, what rounding of the stream may
    leave is allowed for.
    """
    if total is None or any(part is None for part in parts):
        return False
    rounding = 2 * torch.finfo(total.dtype).eps * total.float().abs()
    terms = [part.to(total.device).float() for part in parts if part is not None]
    residue = (total.float() - sum(terms[1:], terms[0])).abs() - rounding
    smallest = min(term.abs().max() for term in terms[1:])
    return bool(residue.max() <= 1e-2 * smallest)
