"""A diff and a series in their folders, as `write_report` finds them."""

import copy
import re
import shutil

import pytest

from refusaldir.errors import StoreError
from refusaldir.pipeline.report import write_report
from refusaldir.report.document import write_json


@pytest.fixture
def folder(full, bare, tmp_path):
    """A diff with layers and both runs beside it."""
    document = copy.deepcopy(full.diff)
    write_json(document, tmp_path / "diff.json")
    write_json(full.layers, tmp_path / "layers.json")
    for name, run in (("base", full.base), ("tuned", full.tuned)):
        (tmp_path / name).mkdir()
        run.single.to_jsonl(tmp_path / name / "responses.jsonl")
    return tmp_path


def test_everything_beside_a_diff_is_on_its_page(folder):
    html = write_report(folder).read_text("utf-8")
    assert 'id="fig-lenses"' in html and 'id="fig-shares"' in html
    assert "SECRET RESPONSE" in html
    shutil.rmtree(folder / "tuned")
    (folder / "layers.json").unlink()
    html = write_report(folder / "diff.json").read_text("utf-8")
    assert 'id="fig-lenses"' not in html and "SECRET RESPONSE" not in html


def test_damage_beside_a_diff_is_named(folder):
    (folder / "layers.json").write_text("{}", "utf-8")
    with pytest.raises(StoreError, match="not a layers document"):
        write_report(folder)


def test_a_page_is_the_same_every_time(folder):
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert len(first) < 2_000_000
    assert not re.search(rb"/tmp/|/root/", first.replace(str(folder).encode(), b""))
