"""Exceptions that a user can act on.

Every message is one clear sentence or two: what is wrong, what was expected, what came
instead, where, and what to do next. The command line prints the message alone and exits
with ``exit_code``: 2 for something the user can mend, 1 for a fault of refusaldir.
"""


class RefusaldirError(Exception):
    """Base class of every error raised on purpose.

    Args:
        what: What went wrong, as a sentence without a final full stop.
        expected: What would have been accepted.
        got: What was found instead.
        where: The file, layer, prompt or option concerned.
        next_step: What the user can do about it.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        expected: object = None,
        got: object = None,
        where: object = None,
        next_step: str | None = None,
    ) -> None:
        """Compose the message; see the class docstring for the arguments."""
        self.what = what
        self.expected = expected
        self.got = got
        self.where = where
        self.next_step = next_step
        message = what if where is None else f"{what} ({where})"
        details = []
        if expected is not None:
            details.append(f"expected {expected}")
        if got is not None:
            details.append(f"got {got}")
        if details:
            message += ": " + ", ".join(details)
        message = message.rstrip(".") + "."
        if next_step is not None:
            message += " " + next_step.rstrip(".") + "."
        super().__init__(message)


class ModelSpecError(RefusaldirError):
    """A model spec cannot be parsed, found or combined (adapter for another base, …)."""


class ModelLoadError(RefusaldirError):
    """A model was found but cannot be loaded or hooked."""


class PromptError(RefusaldirError):
    """A prompt set is missing, malformed, empty or lacks a class."""


class TemplateError(RefusaldirError):
    """A chat template is missing or its post-instruction tokens cannot be found."""


class CaptureError(RefusaldirError):
    """A forward pass gave values that cannot be used (NaN, infinities, context exceeded)."""


class CaptureMismatchError(RefusaldirError):
    """Two captures differ in something that must be equal to compare them."""


class StoreError(RefusaldirError):
    """A capture file is missing, foreign, truncated, incomplete, newer or cannot be written."""


class OutputExistsError(RefusaldirError):
    """An output file exists and overwriting it was not asked for."""


class DirectionError(RefusaldirError):
    """A direction has zero or non-finite norm, or cannot be estimated from the data given."""


class ProbeError(RefusaldirError):
    """A behavioural probe cannot be run or its results cannot be paired."""


class MissingExtraError(RefusaldirError):
    """An optional dependency is not installed.

    Args:
        feature: What needs it, e.g. ``"4-bit loading"``.
        extra: The name of the extra in ``pip install 'refusaldir[extra]'``.
    """

    def __init__(self, feature: str, extra: str) -> None:
        """Name the feature and the command that installs what it needs."""
        super().__init__(
            f"{feature} needs the optional dependencies '{extra}'",
            next_step=f"Install them with: pip install 'refusaldir[{extra}]'",
        )
