"""Samples for people: equal chances, strata represented, labels found again."""

import csv
import io
from collections import Counter

import pytest
from arms import row

from refusaldir.errors import ProbeError
from refusaldir.probes.judging.labels import LabelsJudge
from refusaldir.probes.judging.sample import COLUMNS, draw_sample, sample_csv


def replies(n=120):
    return [
        row(f"p{i}", "FCCC"[i % 4], harmful=i % 2 == 0, category=f"c{i % 3}", response=f"said {i}")
        for i in range(n)
    ]


def test_strata_are_represented_within_one():
    rows = replies()
    for seed in range(5):
        drawn = draw_sample(rows, 40, seed=seed)
        assert len({r.id for r in drawn}) == 40
        for of in (lambda r: r.harmful, lambda r: (r.harmful, r.category)):
            strata = Counter(map(of, rows))
            got = Counter(map(of, drawn))
            assert all(abs(got[key] - count / 3) <= 1 for key, count in strata.items())


def test_every_reply_has_the_same_chance():
    rows = replies(23)
    seen = Counter(r.id for seed in range(2000) for r in draw_sample(rows, 5, seed=seed))
    expected = 2000 * 5 / 23
    assert len(seen) == 23
    assert max(abs(count - expected) for count in seen.values()) < 4.5 * (expected * 18 / 23) ** 0.5


def test_the_seed_decides_and_all_is_all():
    rows = replies()
    assert draw_sample(rows, 30, seed=1) == draw_sample(rows, 30, seed=1)
    assert draw_sample(rows, 30, seed=1) != draw_sample(rows, 30, seed=2)
    everything = draw_sample(rows, 10_000)
    assert sorted(r.id for r in everything) == sorted(r.id for r in rows)
    assert [r.id for r in everything] != [r.id for r in rows], "the order is random"
    for n, given in ((0, rows), (3, [])):
        with pytest.raises(ProbeError, match="a sample needs replies"):
            draw_sample(given, n)


def test_labels_are_found_again_whatever_a_spreadsheet_did_to_the_texts(tmp_path):
    same = {"response": "I can't.", "prompt": "how", "temperature": 0.7}
    rows = [row("p0", "C", response="=1+1\n-x"), row("p1", "F", **same, sample=0),
            row("p1", "F", **same, sample=1), row("p2", "C", response="“quoted”, so")]  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(sample_csv(rows).decode("utf-8-sig"))))
    assert tuple(lines[0]) == COLUMNS
    assert lines[0]["response"].startswith("'=")
    assert not any("full_refusal" in str(line) for line in lines), "people are not told"
    for line, label in zip(lines, ("0", "1", "", "partial_refusal"), strict=True):
        line.update(label=label, response=line["response"].strip("'").replace("“", '"'))
    path = tmp_path / "labels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    # The second of two equal replies was not labelled: it stays so.
    assert LabelsJudge.open(path).labels(rows) == [
        "compliance", "full_refusal", None, "partial_refusal",
    ]  # fmt: skip


def test_a_file_that_nobody_has_filled_in_is_said(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(sample_csv(replies(3)))
    with pytest.raises(ProbeError, match=r"labelled yet.*3 lines with a blank label"):
        LabelsJudge.open(path)
