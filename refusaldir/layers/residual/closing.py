"""Whether parts add up to the whole that was measured beside them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from refusaldir.errors import CaptureError

#: Largest closing error, as a share of all that changed.
CLOSING = 1e-4

#: A closing error within so many SDs of rounding is rounding.
_ROUNDING_SDS = 8.0


@dataclass(frozen=True, kw_only=True)
class Closing:
    """By how much the parts miss the whole; the largest seen.

    Attributes:
        absolute: ``|whole − Σ parts|``, in the unit of the whole.
        relative: As a share of ``Σ |parts|`` in the same place, or of ``|whole|`` where that is
            more; 0 where nothing changed.
        rounding: What rounding in the models' dtype may leave at most, in the unit of the whole.
            Far above what changed, as it may be in bfloat16, it leaves ``relative`` alone to say
            how good the decomposition is.
    """

    absolute: float
    relative: float
    rounding: float


def check_closing(
    parts: Float[np.ndarray, "unit part"],
    whole: Float[np.ndarray, " unit"],
    rounding: Float[np.ndarray, " unit"],
    *,
    of: str,
    where: Callable[[int], str],
    next_step: str,
) -> Closing:
    """Compare parts with the whole.

    Args:
        parts: Change of each part.
        whole: Change of the whole, measured on its own.
        rounding: SD of what rounding may bring into the whole less the sum of the parts.
        of: What the parts are and what the whole is, for the error.
        where: Names a unit, for the error.
        next_step: What the user can do about it.

    Raises:
        CaptureError: The closing error is above `CLOSING` and above rounding, or not a number.
    """
    error = np.abs(whole - parts.sum(axis=1))
    moved = np.maximum(np.abs(parts).sum(axis=1), np.abs(whole))
    relative = np.divide(error, moved, out=np.zeros_like(error), where=moved > 0)
    limit = _ROUNDING_SDS * rounding
    # Written so that NaN does not pass.
    open_ = ~((error <= CLOSING * moved) | (error <= limit))
    if open_.any():
        worst = int(np.argmax(np.where(open_, np.nan_to_num(relative, nan=np.inf), -1.0)))
        raise CaptureError(
            of,
            expected=f"a closing error of at most {CLOSING:g} of what changed",
            got=f"{relative[worst]:.2g}",
            where=where(worst),
            next_step=next_step,
        )
    return Closing(
        absolute=float(error.max(initial=0.0)),
        relative=float(relative.max(initial=0.0)),
        rounding=float(limit.max(initial=0.0)),
    )
