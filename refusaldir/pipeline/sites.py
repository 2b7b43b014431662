"""Sites as the user writes them."""

import re

from refusaldir.errors import RefusaldirError
from refusaldir.records import Site

_SITE = re.compile(r"([a-z_]+)\.(\d+)@([-−]?\d+)")


def parse_site(text: str | None) -> Site | None:
    """Turn ``"resid_pre.18@-1"`` into a site; None stays None.

    Raises:
        RefusaldirError: The text is no site.
    """
    if text is None:
        return None
    found = _SITE.fullmatch(text.strip())
    if found is None:
        raise RefusaldirError(
            "The site cannot be read",
            expected="HOOK.LAYER@POSITION, e.g. resid_pre.18@-1",
            got=repr(text),
            where="--site",
        )
    hook, layer, position = found.groups()
    return Site(hook=hook, layer=int(layer), position=int(position.replace("−", "-")))
