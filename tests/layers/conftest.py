"""Tiny pairs on disk, made once a session."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def make_pair(tmp_path_factory):
    """Return a maker of pairs: architecture, ``"full"`` or ``"lora"``, what is changed."""
    from pairs import DENSE, TARGETS, Pair, changed, make_base, save_lora, save_tuned

    made = {}

    def make(name, kind, *, only=(), change=0.03, layers=None):
        key = (name, kind, only, change, layers)
        if key not in made:
            if (name,) not in made:
                made[name,] = save_tuned(make_base(name), tmp_path_factory.mktemp("base"))
            base = made[name,]
            folder = tmp_path_factory.mktemp("tuned")
            if kind == "full":
                tuned = save_tuned(changed(make_base(name), only=only, change=change), folder)
            else:
                targets = TARGETS.get(name, DENSE)
                layers = None if layers is None else list(layers)
                tuned = f"{base}+{save_lora(base, folder, targets=targets, layers=layers)}"
            made[key] = Pair(base, tuned)
        return made[key]

    return make
