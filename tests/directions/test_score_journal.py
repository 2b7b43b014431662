"""A search among candidates that is cut off and goes on gives what one in a piece gives."""

from dataclasses import asdict

import numpy as np
import pytest

from refusaldir.directions import trials
from refusaldir.directions.candidates import Candidate, Thresholds
from refusaldir.directions.causal import select_causal
from refusaldir.directions.score_journal import ScoreJournal
from refusaldir.errors import StoreError
from refusaldir.records import Site

LAYERS, OFFSETS = (0, 1, 2), (-3, -2, -1)
#: Drops some by KL, early, and some by induce.
LIMITS = Thresholds(kl=0.6, induce=-4.0, depth=1.0)
NONE_VALID = Thresholds(kl=0.1, induce=-4.0, depth=1.0)


class Cut(Exception):
    pass


@pytest.fixture(scope="module")
def model():
    from tiny import make_model

    return make_model()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Two candidates a chunk: the prompts share three tokens."""
    monkeypatch.setattr(trials, "FIRST_BUDGET", {"cpu": 6})


@pytest.fixture(scope="module")
def search(model):
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(3, 3, 32)) * np.array([0.5, 1.0, 3.0])[:, None, None]
    harmful, harmless = (
        [[3, 40, 41, *rng.integers(5, 97, rng.integers(3, 9)).tolist()] for _ in range(n)]
        for n in (7, 6)
    )

    def run(journal=None, *, stop_after=None, **changed):
        def count(done, total):
            seen.append(done)
            if len(seen) == stop_after:
                raise Cut

        seen = []
        settings = {
            "layers": LAYERS, "offsets": OFFSETS, "harmful": harmful, "harmless": harmless,
            "refusal_tokens": [5, 11, 40], "thresholds": LIMITS,
        }  # fmt: skip
        return select_causal(
            model, directions, journal=journal, on_progress=count, **{**settings, **changed}
        )

    return run


@pytest.fixture
def passes(model, monkeypatch):
    """Rows that went through the model."""
    rows = []
    own = type(model)._forward

    def counted(self, module, input_ids, *rest):
        rows.append(input_ids.shape[0])
        return own(self, module, input_ids, *rest)

    monkeypatch.setattr(type(model), "_forward", counted)
    return rows


@pytest.mark.parametrize(
    ("changed", "reasons"),
    [
        ({}, {"KL", "induce", ""}),
        ({"thresholds": NONE_VALID}, {"KL"}),
        ({"criterion": "cosmic"}, {"KL", ""}),
    ],
)
@pytest.mark.parametrize("after", [1, 3])
def test_what_was_cut_off_goes_on_and_is_the_same(
    search, passes, tmp_path, changed, reasons, after
):
    whole = search(**changed)
    needed = sum(passes)
    assert {c.dropped for c in whole.candidates} == reasons
    path = tmp_path / "new" / "scores.jsonl"
    with pytest.raises(Cut):
        search(path, stop_after=after, **changed)
    kept = path.read_bytes()
    assert kept.count(b"\n") == 1 + after
    # Killed while it wrote a line.
    path.write_bytes(kept + kept.splitlines()[-1][:40])
    passes.clear()
    assert asdict(search(path, **changed)) == asdict(whole)
    assert sum(passes) < needed
    assert path.read_bytes().startswith(kept) and path.read_bytes().count(b"\n") == 1 + 5
    # Only the clean model, and the nearest candidate where none is valid, are run again.
    rest = sum(passes)
    passes.clear()
    assert asdict(search(path, **changed)) == asdict(whole)
    assert sum(passes) < min(rest, needed / 2)


@pytest.mark.parametrize(
    "changed",
    [
        {"criterion": "cosmic"},
        {"thresholds": NONE_VALID},
        {"refusal_tokens": [5, 11]},
        {"exhaustive": True},
        {"harmless": [[3, 40, 41, 50, 51], [3, 40, 41, 60]]},
    ],
)
def test_what_decides_otherwise_is_begun_anew(search, tmp_path, changed):
    path = tmp_path / "scores.jsonl"
    with pytest.raises(Cut):
        search(path, stop_after=2)
    before = path.read_bytes().splitlines()[0]
    assert asdict(search(path, **changed)) == asdict(search(**changed))
    assert path.read_bytes().splitlines()[0] != before


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"{}\n{}\n", b"[1]\n"])
def test_a_foreign_or_damaged_file_is_begun_anew(search, tmp_path, content):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(content)
    assert asdict(search(path)) == asdict(search())
    assert path.read_bytes().count(b"\n") == 6


def test_scores_come_back_bit_for_bit(tmp_path):
    site = Site(hook="resid_pre", layer=1, position=-1)
    blank = Candidate(site=site, norm=1 / 3)
    values = np.random.default_rng(0).normal(size=4) * 10.0 ** np.array([-200, -7, 0, 300])
    scored = Candidate(
        site=site, norm=1 / 3, kl=values[0], kl_exact=True, induce=values[1], bypass=np.inf,
        cosmic=values[2], dropped="not finite",
    )  # fmt: skip
    rows = [[float(values[3]), float("nan"), -np.inf]]
    ScoreJournal(tmp_path / "a", "x").keep(0, [scored], rows)
    journal = ScoreJournal(tmp_path / "a", "x")
    ((back,), known) = journal.chunk(0, [blank])
    assert back == scored
    np.testing.assert_array_equal(known, rows)
    assert journal.chunk(1, [blank]) is None
    assert journal.chunk(0, [blank, blank]) is None
    assert ScoreJournal(tmp_path / "a", "y").chunk(0, [blank]) is None


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot be kept.*--out"):
        ScoreJournal(tmp_path / "folder" / "scores", "x")


def test_the_model_takes_part(search, model, tmp_path, monkeypatch):
    from dataclasses import replace

    path = tmp_path / "scores.jsonl"
    search(path)
    before = path.read_bytes().splitlines()[0]
    monkeypatch.setattr(model, "identity", replace(model.identity, weights_hash="other"))
    search(path)
    assert path.read_bytes().splitlines()[0] != before
