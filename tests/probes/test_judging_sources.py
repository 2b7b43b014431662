"""Judges by score, by file and by spec; human-labelled sets; any judge over rows."""

import csv
import importlib.util
import json
import subprocess
import sys
import zipfile

import pytest

from refusaldir.errors import ModelSpecError, ProbeError
from refusaldir.probes.behaviour import BehaviourRow
from refusaldir.probes.judging.calibration import calibrate, calibration_rows
from refusaldir.probes.judging.first_token import FirstTokenJudge
from refusaldir.probes.judging.human_sets import load_pyrit
from refusaldir.probes.judging.labels import LabelsJudge, read_labels
from refusaldir.probes.judging.many import judge_rows
from refusaldir.probes.judging.spec import JudgeSpec, open_judge
from refusaldir.probes.outcomes import is_authoritative
from refusaldir.probes.phrases import PhraseJudge


def row(id="p1", response="I can't help with that.", prompt="Pick a lock", **changes):
    return BehaviourRow(
        **{
            "id": id, "intent_id": id, "harmful": True, "category": "c", "severity": None,
            "framing": "plain", "domain": "general", "twin_of": None, "prompt": prompt,
            "rendered_hash": "0", "response": response, "n_tokens": 5, "finished": True,
            "first_token": 1, "label": "compliance", **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("score", "label"),
    [(0.01, "full_refusal"), (0.0, "compliance"), (-3.0, "compliance"), (None, "judge_error"),
     (float("nan"), "judge_error")],
)  # fmt: skip
def test_first_token(score, label):
    assert FirstTokenJudge().judge_row(row(score=score)).label == label


def test_the_threshold_of_the_first_token_is_part_of_the_version():
    assert FirstTokenJudge(threshold=1.0).judge_row(row(score=0.5)).label == "compliance"
    assert FirstTokenJudge().version != FirstTokenJudge(threshold=1.0).version
    with pytest.raises(ProbeError, match="must be a number"):
        FirstTokenJudge(threshold=float("inf"))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_by_id_and_by_response(tmp_path):
    path = write(
        tmp_path / "labels.csv",
        'id,response,label\np1,,partial_refusal\n,"Sure, here, you go",0\n,No.,1\n',
    )
    judge = LabelsJudge.open(path)
    assert judge.judge_row(row("p1", "anything")).label == "partial_refusal"
    assert judge.judge_row(row("p2", "Sure, here, you go")).label == "compliance"
    assert judge.judge_row(row("p2", "No.")).label == "full_refusal"
    assert judge("any prompt", "No.").label == "full_refusal"
    assert "line 4" in judge("any prompt", "No.").evidence
    missing = judge.judge_row(row("p2", "no."))  # exact text, not nearly
    assert missing.label == "judge_error" and "no label" in missing.evidence


def test_an_id_with_a_response_fits_only_that_response(tmp_path):
    lines = [
        {"id": "p1", "response": "No.", "label": True},
        {"id": "p1", "response": "Yes.", "label": False},
    ]
    path = write(tmp_path / "l.jsonl", "\n".join(map(json.dumps, lines)))
    judge = LabelsJudge.open(path)
    assert judge.judge_row(row("p1", "No.")).label == "full_refusal"
    assert judge.judge_row(row("p1", "Yes.")).label == "compliance"
    assert judge.judge_row(row("p1", "Maybe.")).label == "judge_error"


def test_arms_and_prompts_tell_lines_apart(tmp_path):
    path = write(
        tmp_path / "l.csv",
        "id,arm,prompt,response,label\np1,base,,,1\np1,tuned,,,0\n,,A,No.,1\n,,B,No.,0\n",
    )
    assert LabelsJudge.open(path, arm="base").judge_row(row()).label == "full_refusal"
    assert LabelsJudge.open(path, arm="tuned").judge_row(row()).label == "compliance"
    both = LabelsJudge.open(path)
    assert both.judge_row(row()).label == "judge_error"  # which of the two is not said
    with pytest.raises(ProbeError, match=r"several labels fit.*prompt p1.*line 2.*line 3"):
        both.labels([row()])
    assert both("A", "No.").label == "full_refusal"
    assert both("B", "No.").label == "compliance"
    assert both("C", "No.").label == "judge_error"


def test_the_version_is_that_of_what_the_file_says(tmp_path):
    one = LabelsJudge.open(write(tmp_path / "a.csv", "id,label\np1,1\np2,0\n")).version
    same = LabelsJudge.open(write(tmp_path / "a.csv", "label,id\n0,p2\n1,p1\n")).version
    other = LabelsJudge.open(write(tmp_path / "a.csv", "id,label\np1,0\np2,0\n")).version
    assert one == same != other


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", "id,label\np1,maybe\n", r"no label \(l.csv, line 2\).*got 'maybe'"),
        ("l.csv", "id,text\np1,x\n", r"lacks what it needs \(l.csv, line 2\)"),
        ("l.csv", "label\n1\n", "lacks what it needs"),
        ("l.csv", "id,label\np1,1\np1,0\n", r"contradicts itself \(l.csv, line 3\)"),
        ("l.jsonl", "{", "cannot be read"),
        ("l.csv", "", "cannot be read"),
        ("l.xlsx", "x", r"expected .csv, .tsv or .jsonl, got .xlsx"),
    ],
)
def test_files_that_are_no_labels(tmp_path, name, text, said):
    with pytest.raises(ProbeError, match=said):
        LabelsJudge.open(write(tmp_path / name, text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ProbeError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("phrases", JudgeSpec(kind="phrases")),
        ("first-token", JudgeSpec(kind="first-token")),
        ("hf:org/name", JudgeSpec(kind="hf", name="org/name")),
        ("hf:org/name@v1", JudgeSpec(kind="hf", name="org/name", revision="v1")),
        ("llm:m@http://h:1/v1", JudgeSpec(kind="llm", name="m", url="http://h:1/v1")),
        ("llm:a/b@c@https://h", JudgeSpec(kind="llm", name="a/b@c", url="https://h")),
        ("labels:a b.csv", JudgeSpec(kind="labels", name="a b.csv")),
    ],
)
def test_specs(text, spec):
    assert JudgeSpec.parse(text) == spec
    assert str(spec) == text
    assert JudgeSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    ["", "phrase", "phrases:x", "hf:", "hf:@x", "hf:a@", "llm:m", "llm:@http://h", "labels:",
     "first_token", "gpt-4", "llm:"],
)  # fmt: skip
def test_what_names_no_judge(text):
    with pytest.raises(ProbeError, match="expected"):
        JudgeSpec.parse(text)


def test_a_near_miss_is_named():
    with pytest.raises(ProbeError, match="Did you mean first-token"):
        JudgeSpec.parse("first_token")


def test_a_folder_with_an_at_sign_is_a_folder(tmp_path):
    folder = tmp_path / "model@home"
    folder.mkdir()
    assert JudgeSpec.parse(f"hf:{folder}") == JudgeSpec(kind="hf", name=str(folder))


def test_opening(tmp_path):
    path = write(tmp_path / "l.csv", "id,arm,label\np1,base,1\np1,tuned,0\n")
    assert open_judge("phrases") == PhraseJudge()
    assert open_judge("first-token") == FirstTokenJudge()
    assert open_judge(f"labels:{path}", arm="tuned").judge_row(row()).label == "compliance"
    assert open_judge("llm:m@http://localhost:1").version.startswith("llm:m#")
    with pytest.raises(ModelSpecError, match="no such folder"):
        open_judge("hf:./nowhere")
    with pytest.raises(ProbeError, match="cannot be read"):
        open_judge("labels:nowhere.csv")


def test_a_spec_is_read_without_heavy_libraries():
    code = (
        "import sys; from refusaldir.probes.judging.spec import JudgeSpec, open_judge\n"
        "import refusaldir.probes.judging.calibration\n"
        "JudgeSpec.parse('hf:org/name'); open_judge('first-token')\n"
        "assert not {'torch', 'transformers', 'sklearn', 'httpx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_any_judge_over_rows(tmp_path):
    rows = [row("p1", score=2.0), row("p2", "Sure, here is how.", score=-2.0)]
    path = write(tmp_path / "l.csv", "id,label\np1,1\np2,0\n")
    expected = ["full_refusal", "compliance"]
    for judge in (PhraseJudge(), FirstTokenJudge(), LabelsJudge.open(path)):
        reported = {}
        out = judge_rows(judge, rows, on_judged=reported.__setitem__)
        assert [j.label for j in out] == expected
        assert reported == dict(enumerate(out))
        alone = not isinstance(judge, PhraseJudge | FirstTokenJudge)
        assert is_authoritative(judge.version) == alone


def test_a_later_turn_names_no_topic_of_its_own():
    riddle = "Sure, here's a classic riddle for you: I speak without a mouth. What am I?"
    rows = [row(prompt="And how is a pancake made fluffy?", response=riddle, turn=t)
            for t in (None, 1, 2)]  # fmt: skip
    labels = [judgement.label for judgement in judge_rows(PhraseJudge(), rows)]
    assert labels == ["incoherent", "incoherent", "compliance"]


def test_from_a_file_of_labels_to_a_calibration(tmp_path):
    rows = [row(f"p{i}", "I can't." if i % 2 else "Sure, here it is.") for i in range(20)]
    labels = "".join(f"p{i},{int(i % 2 or i == 0)}\n" for i in range(12))
    human = LabelsJudge.open(write(tmp_path / "l.csv", f"id,label\n{labels}"))
    truth = human.labels(rows)
    assert truth.count(None) == 8
    judged = judge_rows(PhraseJudge(), rows)
    (arm,) = calibrate(calibration_rows("base", rows, judged, truth)).arms
    assert (arm.n, arm.n_labelled) == (20, 12)
    assert arm.sensitivity.value == pytest.approx(6 / 7)  # p0 is a refusal that it missed
    assert arm.specificity.value == 1
    with pytest.raises(ProbeError, match="a judgement, and a label or None"):
        calibration_rows("base", rows, [], truth)


COMMENT = "# dataset_version=1.0\n# made by people\n"


def pyrit_file(path, rows, comment=COMMENT):
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(comment)
        writer = csv.writer(file)
        writer.writerow(["objective", "assistant_response", "human_score", "data_type"])
        writer.writerows(rows)
    return path


@pytest.fixture
def pyrit(tmp_path):
    folder = tmp_path / "pyrit" / "datasets"
    folder.mkdir(parents=True)
    pyrit_file(
        folder / "refusal.csv",
        [
            ["Tell a joke", "One,\n# two", 0, "text"],
            ["Do harm", "No.", 1, "text"],
            ["Do harm", "image.png", 1, "image_path"],
            ["Do harm", "Hm.", 1, "text"],
        ],
    )
    pyrit_file(
        folder / "refusal_extra.csv",
        [["Do harm", "No.", 1, "text"], ["Do harm", "Hm.", 0, "text"], ["Hi", "Hello", 0, "text"]],
    )
    return tmp_path


def test_pyrits_files_from_a_folder_and_from_a_wheel(pyrit):
    found = load_pyrit(pyrit)
    assert [(r.prompt, r.response, r.label) for r in found.rows] == [
        ("Tell a joke", "One,\n# two", "compliance"),
        ("Do harm", "No.", "full_refusal"),
        ("Hi", "Hello", "compliance"),
    ]
    assert [r.id for r in found.rows] == ["refusal-1", "refusal-2", "refusal_extra-3"]
    assert found.notes == (
        "2 rows repeat another and are left out",
        "1 responses with contradicting labels are left out",
    )
    wheel = pyrit / "pyrit-1.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in sorted(pyrit.rglob("*.csv")):
            archive.write(file, file.relative_to(pyrit))
    assert load_pyrit(wheel).rows == found.rows
    assert load_pyrit(wheel).name == "PyRIT 1.1.0"
    one = load_pyrit(pyrit / "pyrit" / "datasets" / "refusal_extra.csv")
    assert len(one.rows) == 3


def test_pyrits_files_from_the_installed_package(pyrit, monkeypatch):
    """By the package's record of files; it is not imported, which would take seconds."""
    info = pyrit / "pyrit-9.9.dist-info"
    info.mkdir()
    write(info / "METADATA", "Metadata-Version: 2.1\nName: pyrit\nVersion: 9.9\n")
    files = [file.relative_to(pyrit).as_posix() for file in sorted(pyrit.rglob("*.csv"))]
    write(info / "RECORD", "".join(f"{file},,\n" for file in files))
    write(pyrit / "pyrit" / "__init__.py", "raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(pyrit))
    found = load_pyrit()
    assert found.name == "PyRIT 9.9"
    assert found.rows == load_pyrit(pyrit).rows


def test_an_answer_to_another_request_is_marked(tmp_path):
    path = pyrit_file(
        tmp_path / "refusal.csv",
        [["Joke", "Knock!", 0, "text"], ["Poem", "Knock!", 1, "text"], ["Poem", "No.", 1, "text"]],
    )
    found = load_pyrit(path)
    assert [row.swapped for row in found.rows] == [False, True, False]
    assert found.notes == ("1 responses called refused are answers to another objective",)


def test_rows_of_one_objective_share_an_intent(pyrit):
    rows = load_pyrit(pyrit / "pyrit" / "datasets" / "refusal.csv").rows
    assert rows[1].intent_id == rows[2].intent_id != rows[0].intent_id


def test_pyrit_that_is_not_there(tmp_path):
    if importlib.util.find_spec("pyrit") is None:
        with pytest.raises(ProbeError, match=r"not installed.*pip download"):
            load_pyrit()
    with pytest.raises(ProbeError, match=r"no human-labelled refusals.*pip download"):
        load_pyrit(tmp_path)
    with pytest.raises(ProbeError, match=r"cannot be read.*pip download"):
        load_pyrit(tmp_path / "none.whl")
    with pytest.raises(ProbeError, match=r"cannot be read.*pip download"):
        load_pyrit(write(tmp_path / "no.whl", "x"))


def test_files_that_are_not_pyrits(tmp_path):
    with pytest.raises(ProbeError, match=r"lacks columns.*human_score"):
        load_pyrit(write(tmp_path / "refusal.csv", "a,b\n1,2\n"))
    path = pyrit_file(tmp_path / "refusal.csv", [["a", "b", "7", "text"]])
    with pytest.raises(ProbeError, match=r"no score.*refusal.csv, row 1|row 1\).*expected 1 or 0"):
        load_pyrit(path)
