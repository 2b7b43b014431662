import copy
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from refusaldir.prompts.schema import Prompt, PromptSet, Turn
from refusaldir.records import ModelIdentity, Positions, Provenance, TemplateIdentity
from refusaldir.report.layout import MAX_LAYERS, PROSE_WIDTH, estimate, select_layers
from refusaldir.report.tables import capture_table, diff_report, drift_table
from refusaldir.report.text import brief, category_order, number, visible
from refusaldir.store import CaptureWriter, summary

ESTIMATE = re.compile(r"[+−]?\d+\.\d+ \[[+−]?\d+\.\d+, [+−]?\d+\.\d+\]")


def draw(renderable, width=80, **kwargs):
    console = Console(width=width, file=io.StringIO(), highlight=False, **kwargs)
    console.print(renderable)
    return console.file.getvalue()


def row_of(text, label):
    return next(line for line in text.splitlines() if line.lstrip(" ▸").startswith(label))


@pytest.fixture
def mutable(document):
    return copy.deepcopy(document)


@pytest.mark.parametrize("width", [80, 100, 150, 200])
@pytest.mark.parametrize("layers, categories", [(30, 12), (80, 44), (1, 1), (3, 0)])
def test_no_line_is_too_wide_and_no_number_is_cut(make_document, width, layers, categories):
    text = draw(diff_report(make_document(layers, categories, lost=0)), width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "…" not in text


def test_the_widest_numbers_fit_80_columns(mutable):
    for row in mutable["drift"]["layers"]:
        if row["rotation"]["value"] is not None:
            row["rotation"].update(value=-0.5, lower=-0.6, upper=-0.4)
            row["rotation_raw"].update(value=-0.5)
            row["shrinkage"].update(value=12.3456, lower=11.0, upper=13.0)
            row["translation"]["harmful"].update(value=-12.345, lower=-13.0, upper=-11.0)
    for group in mutable["behaviour"]["axes"]["refusal"]["breakdowns"]["category"]["groups"]:
        group.update(n_paired=10_000)
        group["base_rate"]["value"] = group["tuned_rate"]["value"] = 1.0
        group["difference"].update(value=-1.0, lower=-1.0, upper=-0.88)
    text = draw(diff_report(mutable))
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    assert "−0.500 [−0.600, −0.400]*" in row_of(text, "18 ")
    assert "−12.35*" in row_of(text, "18 ") and "AUROC" in text


@pytest.mark.parametrize("width", [30, 40, 50, 60, 70])
def test_a_narrow_terminal_gets_fewer_columns_not_cut_ones(document, width):
    text = draw(drift_table(document), width)
    rotation = document["drift"]["layers"][18]["rotation"]
    assert number(rotation["value"], 3) in row_of(text, "18 ")
    assert "…" not in text
    assert all(cell_len(line) <= width for line in text.splitlines())


def test_a_wide_terminal_gets_more_intervals(document):
    counts = [
        len(ESTIMATE.findall(row_of(draw(drift_table(document), width), "18 ")))
        for width in (80, 125, 160)
    ]
    assert counts == [1, 4, 6]


def test_the_figures_shown_are_those_of_the_document(document):
    line = row_of(draw(drift_table(document), 160), "18 ")
    row = document["drift"]["layers"][18]
    for cell, digits in (
        (row["rotation"], 3),
        (row["shrinkage"], 2),
        (row["translation"]["harmful"], 2),
        (row["translation"]["harmless"], 2),
        (row["auroc"]["base_direction_on_tuned"], 3),
        (row["auroc"]["tuned_direction_on_tuned"], 3),
    ):
        shown = [f"{cell[k]:.{digits}f}".replace("-", "−") for k in ("value", "lower", "upper")]
        assert f"{shown[0]} [{shown[1]}, {shown[2]}]" in line


def test_the_chosen_layer_is_marked_and_lost_layers_are_dashes(document):
    text = draw(drift_table(document))
    assert [line.split()[1] for line in text.splitlines() if line.lstrip().startswith("▸")] == [
        "18"
    ]
    assert row_of(text, "0 ").split() == ["0", *["–"] * 7]
    assert "cannot be estimated" in text


def test_stars_follow_the_interval_and_the_floor(mutable):
    rows = mutable["drift"]["layers"]
    for layer, (low, high) in {
        19: (1 + 0.5e-5, 1.1), 20: (0.9, 1.0), 21: (0.9, 1 - 0.5e-5), 22: (0.9, 0.9999),
        23: (1.0001, 1.1),
    }.items():  # fmt: skip
        rows[layer]["rotation"].update(value=(low + high) / 2, lower=low, upper=high)
        rows[layer]["shrinkage"].update(value=1.0, lower=0.9, upper=1.1)
        rows[layer]["translation"]["harmful"].update(value=0.0, lower=-0.1, upper=0.1)
        rows[layer]["translation"]["harmless"].update(value=0.0, lower=-0.1, upper=0.1)
    text = draw(drift_table(mutable))
    assert ["*" in row_of(text, f"{layer} ") for layer in (19, 20, 21, 22, 23)] == [
        False, False, False, True, True,
    ]  # fmt: skip


def test_behaviour_rows_come_in_order_with_their_marks(document):
    text = draw(diff_report(document), 80)
    harmful = text[text.index("\nRefusal of harmful prompts") : text.index("\nOver-refusal")]
    axis = document["behaviour"]["axes"]["refusal"]
    order = category_order(document["behaviour"])
    changes = {
        r["name"]: r["difference"]["value"] for r in axis["breakdowns"]["category"]["groups"]
    }
    assert [changes[c] for c in order] == sorted(changes.values())
    shown = [harmful.index("\n" + name.split(" (")[0]) for name in order]
    assert shown == sorted(shown)
    for row in axis["breakdowns"]["category"]["groups"]:
        line = row_of(harmful, row["name"].split(" (")[0])
        assert line.rstrip().endswith("*") == (row["p_holm"] < 0.05)
        assert f" {100 * row['base_rate']['value']:.1f} " in line


def test_the_change_of_the_refusal_score_stands_beside_the_rates(mutable):
    axes = mutable["behaviour"]["axes"]
    title = "First-token refusal score"
    assert title not in draw(diff_report(mutable))
    mutable["behaviour"]["refusal_tokens"] = ["I", "Sor\nry"]
    for k, axis in enumerate(axes.values()):
        for i, row in enumerate((axis["overall"], *axis["breakdowns"]["category"]["groups"])):
            value = -1.5 + k + i / 10
            row["score_difference"] = {**row["difference"], "value": value, "lower": value - 1}
            row["score_difference"]["upper"] = value + 1
    axes["over_refusal"]["breakdowns"]["category"]["groups"][0]["score_difference"] = None
    text = draw(diff_report(mutable)).split(title)[1]
    assert "“I”, “Sor\\nry”" in text
    assert row_of(text, "all prompts").split(maxsplit=2)[2].split("  ")[0] == "−1.50 [−2.50, −0.50]"
    for i, row in enumerate(axes["refusal"]["breakdowns"]["category"]["groups"], start=1):
        line = row_of(text, row["name"][:14])
        assert f"{number(-1.5 + i / 10, 2, signed=True)} [" in line
    missing = row_of(text, axes["over_refusal"]["breakdowns"]["category"]["groups"][0]["name"][:14])
    assert missing.rstrip().endswith("–")


def test_unjudged_responses_are_counted_by_kind(drift, behaviour):
    from refusaldir.report.document import build_document

    text = draw(diff_report(build_document(drift(3), behaviour(2, unusable=5))))
    assert "5 prompts left out because a response says nothing: tuned incoherent 5." in text


def test_names_with_markup_and_control_characters_stay_text(mutable):
    mutable["base"]["model"]["name"] = "[red]evil[/red]\x1b[31m"
    mutable["behaviour"]["axes"]["refusal"]["breakdowns"]["category"]["groups"][0]["name"] = (
        "[bold]x\x1b]0;t\x07"
    )
    mutable["verdict"]["headline"] = "[link=x]y[/link]"
    text = draw(diff_report(mutable), 150)
    assert "[red]evil[/red]\\x1b[31m" in text
    assert "[bold]x\\x1b]0;t\\x07" in re.sub(r"\s+", "", text)
    assert "[link=x]y[/link]" in text
    assert "\x1b" not in text and "\x07" not in text


def test_no_colour_is_left_to_rich(document):
    coloured = draw(diff_report(document), force_terminal=True, color_system="truecolor")
    plain = draw(diff_report(document), force_terminal=True, no_color=True)
    assert "\x1b[1m" in coloured
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", plain)


def test_prose_stays_readable_on_a_wide_terminal(document):
    text = draw(diff_report(document), 250)
    panel = text[: text.index("╯")]
    assert max(cell_len(line) for line in panel.splitlines()) == PROSE_WIDTH


# --- selection of layers ---------------------------------------------------------------------


@given(
    n=st.integers(1, 300),
    keep=st.sets(st.integers(0, 299), max_size=6),
    limit=st.integers(1, 60),
)
def test_select_layers_keeps_order_ends_within_bounds_and_says_so(n, keep, limit):
    rows = [{"layer": i} for i in range(n)]
    shown, note = select_layers(rows, keep, limit=limit)
    layers = [row["layer"] for row in shown]
    assert layers == sorted(set(layers)) and layers[0] == 0
    assert {k for k in keep if k < n} <= set(layers)
    assert len(layers) <= limit + len(keep)
    assert (note == "") == (len(layers) == n or n <= limit) or f"{len(layers)} of {n}" in note


def test_a_long_model_is_thinned_and_says_so(make_document):
    document = make_document(80, 0)
    text = draw(drift_table(document))
    assert "Every second layer is shown, with the chosen and the top-ranked ones" in text
    shown = {int(m) for m in re.findall(r"^[ ▸]*(\d+)  ", text, re.MULTILINE)}
    top = {entry["layer"] for entry in document["drift"]["ranking"][:5]}
    assert top | {document["drift"]["site"]["layer"]} | set(range(0, 80, 2)) == shown


def test_as_many_layers_as_the_limit_are_all_shown():
    rows = [{"layer": i} for i in range(MAX_LAYERS)]
    assert select_layers(rows) == (rows, "")


# --- text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, digits, options, text",
    [
        (-0.0001, 2, {}, "0.00"),
        (-0.0001, 2, {"signed": True}, "0.00"),
        (0.126, 1, {"scale": 100.0, "signed": True}, "+12.6"),
        (-1.5, 1, {}, "−1.5"),
        (None, 2, {}, "–"),
        (-1, 0, {}, "−1"),
    ],
)
def test_numbers(value, digits, options, text):
    assert number(value, digits, **options) == text


def test_an_estimate_without_interval_or_value():
    assert estimate({"value": 1.0, "lower": None, "upper": None}, 2) == "1.00"
    assert estimate({"value": None, "lower": 1.0, "upper": 2.0}, 2) == "–"


@given(st.text())
def test_visible_text_is_printable(text):
    assert visible(text).isprintable()
    assert visible(text) == text or not text.isprintable()


# --- captures --------------------------------------------------------------------------------


@pytest.fixture
def capture(tmp_path):
    prompts = PromptSet(
        "made-up",
        tuple(
            Prompt(
                id=f"p{i}",
                intent_id=f"i{i // 2}",
                label="harmful" if i % 2 == 0 else "harmless",
                category="privacy",
                turns=(Turn("user", f"ask {i}"),),
                split="train" if i < 6 else "test",
            )
            for i in range(8)
        ),
        ("one prompt was dropped",),
    )
    provenance = Provenance(
        model=ModelIdentity(
            spec="./tiny",
            name="tiny",
            weights_hash="w",
            architecture="LlamaForCausalLM",
            n_layers=6,
            d_model=8,
            vocab_size=100,
            dtype="float32",
        ),
        template=TemplateIdentity(
            tokenizer_hash="t", template_hash="0123456789abcdef", post_tokens=("<e>", "\n")
        ),
        prompts_name="made-up",
        prompts_hash=prompts.hash,
        rendered_hash="r",
        hooks=("resid_pre",),
        layers=(0, 1, 2, 5),
        positions=Positions(offsets=(-2, -1), labels=("<e>", "a\n")),
        versions={"refusaldir": "0.1.0"},
        created="2026-01-01T00:00:00+00:00",
    )
    values = np.random.default_rng(0).standard_normal((8, 4, 2, 8)).astype(np.float32)
    path = tmp_path / "tiny.h5"
    with CaptureWriter.create(
        path, provenance=provenance, prompts=prompts, lengths=[9] * 8, d_model=8
    ) as writer:
        writer.write(np.arange(8), {"resid_pre": values})
        writer.finish()
    return path, values


def test_a_capture_is_described(capture):
    path, values = capture
    text = draw(capture_table(summary(path)))
    flat = re.sub(r"\s+", " ", text)
    for fact in (
        "made-up: 4 harmful and 4 harmless from 4 intents in 1 categories",
        "train 3 + 3, test 1 + 1",
        "0–2, 5 of 6",
        "−2 “<e>”, −1 “a\\n”",
        "8 × 4 × 2 × 8 (prompt, layer, pos, d_model) in float32",
        "one prompt was dropped",
        "tiny (LlamaForCausalLM, float32, transformer_lens)",
    ):
        assert fact in flat
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    means = [values[k::2].astype(np.float64).mean(axis=0) for k in (0, 1)]
    norms = np.linalg.norm(means[0] - means[1], axis=-1)
    line = [c for c in row_of(text[text.index("Norm") :], "5 ").split() if c]
    assert line == ["5", f"{norms[3, 0]:.2f}", f"{norms[3, 1]:.2f}"]


def test_a_capture_with_many_positions_and_hooks_fits(capture):
    content = summary(capture[0])
    content["positions"] = [{"offset": o, "label": f"<|token {o}|>"} for o in range(-20, 0)]
    content["layers"] = list(range(60))
    content["mean_diff_norm"] = {h: np.full((60, 20), 1234.5).tolist() for h in ("a", "b")}
    text = draw(capture_table(content))
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    assert "Every second layer is shown: 30 of 60." in text
    assert "1234.50" in text and "−1\n" in text.replace(" ", "")
    assert re.search(r"The last \d+ of 20 positions fit", text)


# --- imports ---------------------------------------------------------------------------------


def test_tables_and_documents_load_nothing_heavy():
    code = (
        "import sys, refusaldir.report.tables, refusaldir.report.document, "
        "refusaldir.report.figures\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'matplotlib', 'numpy', 'scipy', "
        "'sklearn', 'h5py', 'jsonschema', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_long_name_loses_its_middle_and_keeps_its_number():
    assert brief("checkpoint-300", 14) == "checkpoint-300"
    assert brief("checkpoint-12000", 14) == "checkp…t-12000"
    assert brief("checkpoint-12000", 12) == "check…-12000"
