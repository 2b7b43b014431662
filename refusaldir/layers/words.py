"""How layers and figures are written in sentences about layers."""

from collections.abc import Callable, Sequence
from itertools import groupby

from refusaldir.layers.effects import Layer
from refusaldir.layers.measured import Measured
from refusaldir.records import Estimate


def layer_words(layers: Sequence[Layer]) -> str:
    """Name layers, runs of them as ranges: ``"layers 3–5 and 9"``."""
    blocks = sorted(layer for layer in layers if layer is not None)
    runs = []
    for _, run in groupby(enumerate(blocks), key=lambda pair: pair[1] - pair[0]):
        members = [block for _, block in run]
        if len(members) > 2:
            runs.append(f"{members[0]}–{members[-1]}")
        else:
            runs += map(str, members)
    parts = []
    if runs:
        parts.append(f"layer{'s' if len(blocks) > 1 else ''} {join(runs)}")
    if None in layers:
        parts.append("what lies outside the blocks")
    return " and ".join(parts)


def join(words: Sequence[str]) -> str:
    """Join words by commas and “and”."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def number(value: float, digits: int = 2, *, signed: bool = False) -> str:
    """With a true minus sign; what rounds to zero has no sign."""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def percent(value: float, digits: int = 0) -> str:
    """A share in percent."""
    return f"{number(100 * value, digits)} %"


def span(e: Estimate, form: Callable[[float], str]) -> str:
    """The interval: ``"95 % interval 1 to 2"``."""
    if e.lower is None or e.upper is None:
        return "no interval"
    kind = "band" if "band" in e.method else "interval"
    return f"{100 * e.level:.3g} % {kind} {form(e.lower)} to {form(e.upper)}"


def share(e: Estimate) -> str:
    """A share with its interval."""
    return "–" if e.value is None else f"{percent(e.value)} ({span(e, percent)})"


def amount(measured: Measured, value: float, *, signed: bool = False) -> str:
    """A difference of outcomes with its unit."""
    if measured.unit == "share":
        return f"{number(100 * value, 1, signed=signed)} points"
    return f"{number(value, signed=signed)} {measured.unit}"


def level_of(measured: Measured, value: float) -> str:
    """An outcome itself."""
    if measured.unit == "share":
        return percent(value, 1)
    return number(value, signed=True)
