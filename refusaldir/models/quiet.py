"""Silence for libraries that draw progress bars and warn while a model loads.

What a warning may hide is checked by `refusaldir.models.load` itself: weights that are missing,
left over or of another shape are errors there.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers, huggingface_hub, PEFT and tqdm; everything is restored after."""
    import transformers.utils.logging as logs
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    verbosity = logs.get_verbosity()
    bars, hub_bars = logs.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logs.set_verbosity(logs.CRITICAL)
    logs.disable_progress_bar()
    disable_progress_bars()
    try:
        # Bars drawn by tqdm directly know no switch but the stream they write to.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logs.set_verbosity(verbosity)
        if bars:
            logs.enable_progress_bar()
        # transformers switches both kinds of bar at once.
        (enable_progress_bars if hub_bars else disable_progress_bars)()
