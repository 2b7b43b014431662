"""Data sets, read by the real library from folders; the Hub itself is out of reach here."""

import json
import sys
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusaldir.errors import MissingExtraError, PromptError
from refusaldir.prompts.hub import HubSpec, read_preset
from refusaldir.prompts.load import load_pair, load_prompts
from refusaldir.prompts.presets import PRESETS, Part, Preset, preset_key
from refusaldir.prompts.rows import MAPPABLE, build_set
from refusaldir.prompts.schema import LABELS

COLUMNS = {"text": "q", "label": "y"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "mine"
    made.mkdir()
    (made / "train.jsonl").write_text(
        '{"q": "one", "y": "safe", "z": 3}\n{"q": "two", "y": "unsafe", "z": 4}\n'
    )
    (made / "test.jsonl").write_text('{"q": "three", "y": "safe", "z": 5}\n')
    return made


part = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1)


@given(name=part, owner=part, config=st.none() | part, revision=st.none() | part, split=part)
def test_spec_round_trip(name, owner, config, revision, split):
    spec = HubSpec(name=f"{owner}/{name}", config=config, revision=revision, split=split)
    assert HubSpec.parse(str(spec)) == spec
    assert HubSpec.parse(f"{owner}/{name}") == HubSpec(name=f"{owner}/{name}")


def test_what_is_no_spec():
    for text in ("two words", "", ":x", "a#", "a@"):
        assert HubSpec.parse(text) is None


def test_folder_with_a_split_and_a_column_map(folder):
    ps = load_prompts(f"{folder}#train", column_map=COLUMNS)
    assert [p.text for p in ps] == ["one", "two"] and ps.labels == [0, 1]
    assert ps.ids == ["mine-1", "mine-2"]
    assert load_prompts(f"{folder}#test", column_map=COLUMNS).labels == [0]


def test_folder_errors_are_one_clear_sentence(folder):
    for source, columns, told in [
        (folder, COLUMNS, r"several splits.*expected one of train, test.*#train"),
        (f"{folder}#dev", COLUMNS, r"from this folder.*Unknown split"),
        (f"{folder}:odd#train", COLUMNS, r"from this folder.*'odd' not found"),
        (f"{folder}#train", {"text": "no"}, r"row 1\).*expected q, y, z, got no"),
        (f"{folder}#train", None, r"no field 'q' .*row 1.*column map, e\.g\. text=q"),
    ]:
        with pytest.raises(PromptError, match=told):
            load_prompts(source, column_map=columns)
    (folder / "empty").mkdir()
    with pytest.raises(PromptError, match=r"from this folder \(.*empty\).*Pass a prompt file"):
        load_prompts(folder / "empty")


def test_folder_saved_to_disk(tmp_path):
    data = datasets.Dataset.from_list([{"prompt": "one"}, {"prompt": "two"}, {"prompt": "one"}])
    data.save_to_disk(tmp_path / "one-split")
    datasets.DatasetDict({"a": data, "b": data}).save_to_disk(tmp_path / "two-splits")
    ps = load_prompts(tmp_path / "one-split", label="harmful")
    assert [p.text for p in ps] == ["one", "two"]
    assert ps.notes == ("1 repeated prompt left out.",)  # Downloaded texts cannot be edited.
    assert load_prompts(f"{tmp_path / 'two-splits'}#b", label="harmful")[0].text == "one"
    with pytest.raises(PromptError, match="several splits"):
        load_prompts(tmp_path / "two-splits", label="harmful")


def test_without_the_library_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in (folder, "advbench", "org/name#train"):
        with pytest.raises(MissingExtraError, match=r"pip install 'refusaldir\[datasets\]'"):
            load_prompts(source, column_map=None if source == "advbench" else COLUMNS)


def test_offline_says_so_and_what_to_do(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for source, where in [
        ("advbench", "walledai/AdvBench#train"),
        ("org/name:config@main#train", "org/name:config@main#train"),
    ]:
        with pytest.raises(PromptError, match=r"cannot be reached on the .* Hub") as error:
            load_prompts(source)
        assert f"({where})" in str(error.value)
        assert "HF_HUB_OFFLINE, or save it to a .jsonl or .csv file" in str(error.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            datasets.exceptions.DatasetNotFoundError(
                "Dataset 'o/n' is a gated dataset on the Hub. You must be authenticated to "
                "access it."
            ),
            r"gated or private.*huggingface\.co/datasets/o/n.*login.*save it to a \.jsonl",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'o/n' doesn't exist on the Hub"),
            "was not found",
        ),
        (RuntimeError("403 Client Error"), "gated or private"),
        (RuntimeError("sorry-bench-202403 is odd\nand more"), r"cannot be loaded.*202403 is odd\."),
        (ConnectionError("down"), "cannot be reached"),
        (ValueError(""), r"cannot be loaded \(o/n\): got ValueError\."),
    ],
)
def test_what_the_hub_says_becomes_one_sentence(monkeypatch, error, told):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(PromptError, match=told) as caught:
        load_prompts("o/n", column_map=COLUMNS)
    assert "\n" not in str(caught.value)


# --- presets --------------------------------------------------------------------------------


def test_every_preset_is_complete_and_found_under_any_spelling():
    names = [
        *("AdvBench", "HarmBench", "JailbreakBench", "StrongREJECT", "XSTest", "OR-Bench"),
        *("SORRY-Bench", "Do-Not-Answer", "MedSafetyBench", "Alpaca", "Dolly"),
    ]
    assert [preset_key(name) for name in names] == list(PRESETS)
    for key, preset in PRESETS.items():
        assert preset_key(key) == key
        assert set(preset.columns) <= set(MAPPABLE) and "text" in preset.columns, key
        assert preset.licence and preset.paper and preset.dataset.count("/") == 1
        assert all(part.label in LABELS or "label" in preset.columns for part in preset.parts)


def fake(tmp_path: Path, configs: dict[str, dict[str, list[dict]]], **fields) -> Preset:
    """A preset whose data set is a folder laid out as those on the Hub are."""
    folder = tmp_path / "fake"
    folder.mkdir(exist_ok=True)
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            name = f"{config}-{split}.jsonl"
            (folder / name).write_text("\n".join(map(json.dumps, rows)))
            lines += [f"  - split: {split}", f"    path: {name}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    given_fields = {"title": "Fake", "licence": "CC0", "paper": "none", **fields}
    return Preset(dataset=str(folder), **given_fields)


def test_matched_behaviours_become_twins(tmp_path):
    def rows(word, behaviours):
        return [
            {"Index": i, "Goal": f"{word} {i}", "Behavior": b, "Category": "c"}
            for i, b in enumerate(behaviours)
        ]

    preset = fake(
        tmp_path,
        {"b": {"harmful": rows("bad", "xyz"), "benign": rows("good", "xyw")}},
        parts=(
            Part(config="b", split="harmful", label="harmful"),
            Part(config="b", split="benign", label="harmless"),
        ),
        columns={"text": "Goal", "category": "Category"},
        pair_on=("Index", "Behavior"),
    )
    ps = build_set("jbb", read_preset("jbb", preset))
    assert ps.labels == [1, 1, 1, 0, 0, 0]
    assert ps[0].twin_of == ps[3].id == "jbb-harmless-1" and ps[3].twin_of == ps[0].id
    assert ps[0].intent_id == ps[3].intent_id
    assert ps[2].twin_of is None and ps[5].twin_of is None  # Another behaviour.
    assert {(p.source, p.licence, p.category) for p in ps} == {("Fake", "CC0", "c")}


def test_rows_are_filtered_and_lists_of_one_are_texts(tmp_path):
    rows = [
        {"turns": ["one"], "style": "base", "input": "", "category": 3},
        {"turns": ["two"], "style": "slang", "input": "", "category": 3},
        {"turns": ["three"], "style": "base", "input": "some text", "category": 4},
        {"turns": ["four"], "style": "base", "input": None, "category": None},
    ]
    preset = fake(
        tmp_path,
        {"default": {"train": rows}},
        parts=(Part(label="harmful"),),
        columns={"text": "turns", "category": "category"},
        keep={"style": "base"},
        empty=("input",),
        domain="medical",
    )
    ps = build_set("x", read_preset("sorry", preset))
    assert [p.text for p in ps] == ["one", "four"] and ps.ids == ["sorry-1", "sorry-4"]
    assert [p.category for p in ps] == ["3", "uncategorised"]
    assert {p.domain for p in ps} == {"medical"}


def test_a_preset_that_changed_its_columns_says_so(tmp_path):
    preset = fake(
        tmp_path,
        {"default": {"train": [{"prompt": "x"}]}},
        parts=(Part(label="harmful"),),
        columns={"text": "Goal"},
    )
    with pytest.raises(PromptError, match=r"changed on the Hub.*expected Goal, got prompt"):
        read_preset("x", preset)


@pytest.fixture
def both(tmp_path, monkeypatch) -> None:
    rows = [{"prompt": f"p{i}", "label": label} for i, label in enumerate(("safe", "unsafe") * 2)]
    preset = fake(
        tmp_path,
        {"default": {"train": rows}},
        parts=(Part(),),
        columns={"text": "prompt", "label": "label"},
    )
    one = Preset(
        **{**vars(preset), "parts": (Part(label="harmful"),), "columns": {"text": "label"}}
    )
    monkeypatch.setattr("refusaldir.prompts.load.PRESETS", {"xstest": preset, "advbench": one})


@pytest.mark.usefixtures("both")
def test_presets_by_name_alone_by_class_and_in_pairs(tmp_path):
    ps = load_prompts("XSTest")
    assert ps.name == "xstest" and ps.labels == [0, 1, 0, 1]
    assert load_prompts("xs-test", label="harmful").ids == ["xstest-2", "xstest-4"]
    mine = tmp_path / "mine.txt"
    mine.write_text("other\n")
    pair = load_pair(mine, "xstest")
    assert pair.labels == [1, 0, 0] and pair.name == "mine+xstest"
    assert pair.ids == ["harmful-mine-1", "harmless-xstest-1", "harmless-xstest-3"]
    with pytest.raises(PromptError, match=r"Fake has no harmless prompts.*got harmful prompts"):
        load_prompts("advbench", label="harmless")


@pytest.mark.usefixtures("both")
def test_presets_take_nothing_but_a_revision():
    for source, columns in [("xstest:x", None), ("xstest#train", None), ("xstest", {"text": "q"})]:
        with pytest.raises(PromptError, match=r"takes no config, split or column map.*Load .*fake"):
            load_prompts(source, column_map=columns)
