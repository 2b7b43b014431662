"""How long work tells how far it is."""

from collections.abc import Callable

#: ``report(stage, done, total)``.
ProgressFn = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Report no progress."""


def counter(progress: ProgressFn, stage: str, total: int) -> Callable[[int], None]:
    """Count what is done, called with how much more it is, and report it.

    Args:
        progress: Called with stage, done and total.
        stage: What is being done.
        total: How much there is to do.
    """
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(stage, done, total)

    return count
