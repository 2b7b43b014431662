"""Two run folders in place of models: behaviour.json, table and figure, and no geometry."""

import dataclasses
import json

import pytest
from arms import arm, behaviour, escalation

from refusaldir.errors import OutputExistsError, ProbeError
from refusaldir.pipeline.behaviour_pair import diff_behaviour, is_behaviour, read_behaviour
from refusaldir.probes.run import FILES, ProbeRun
from refusaldir.report.behaviour_document import load_behaviour


def write(folder, run):
    folder.mkdir()
    for name, part in run.parts():
        part.to_jsonl(folder / FILES[name])
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two models on prompts and frozen escalations, the second with fewer refusals."""
    made = []
    for name, letters, turns in (
        ("base", "F" * 30 + "C" * 6, "CFF"),
        ("tuned", "F" * 18 + "C" * 18, "CFC"),
    ):
        frozen = [r for i in range(3) for r in escalation(f"e{i}", turns, intent=f"e{i}", shared=1)]
        run = ProbeRun(
            single=arm(letters, "C" * 12, categories=3, name=name).single,
            frozen=behaviour(frozen, mode="frozen", name=name),
        )
        made.append(write(tmp_path / name, run))
    return made


def test_two_folders_are_compared(folders, tmp_path):
    done = diff_behaviour(*folders, out=tmp_path / "out")
    assert set(done.files) == {"behaviour.json", "behaviour.png", "behaviour.svg"}
    document = load_behaviour(done.folder / "behaviour.json")
    assert document == done.document
    assert document["behaviour"]["axes"]["refusal"]["overall"]["lost"] == pytest.approx(12 / 36)
    assert document["behaviour"]["escalations"]["frozen"]["axes"]["refusal"]["n"] == 3
    assert document["behaviour"]["link"] is None
    assert document["verdict"]["limits"][0].startswith("No geometry was measured")
    assert document["options"]["base"] == str(folders[0])
    assert "fell from" in done._repr_html_()


def test_a_result_is_not_overwritten_by_chance(folders, tmp_path):
    diff_behaviour(*folders, out=tmp_path / "out")
    with pytest.raises(OutputExistsError, match="refusaldir show"):
        diff_behaviour(*folders, out=tmp_path / "out")
    assert diff_behaviour(*folders, out=tmp_path / "out", force=True, seed=1)


def test_the_store_names_a_folder_by_models_and_responses(folders, tmp_path):
    first = diff_behaviour(*folders, store=tmp_path / "store")
    assert first.folder.parent == tmp_path / "store"
    assert first.folder.name.startswith("behaviour-base-to-tuned-")
    back = diff_behaviour(*reversed(folders), store=tmp_path / "store")
    assert back.folder != first.folder


def test_unlike_runs_are_refused_unless_allowed(folders, tmp_path):
    run = ProbeRun.read(folders[1])
    provenance = dataclasses.replace(run.single.provenance, judges=("phrases-0",))
    single = dataclasses.replace(run.single, provenance=provenance)
    other = write(tmp_path / "other", ProbeRun(single=single))
    with pytest.raises(ProbeError, match="--allow judge"):
        diff_behaviour(folders[0], other, out=tmp_path / "out")
    done = diff_behaviour(folders[0], other, out=tmp_path / "out", allow=["judge"])
    assert done.document["behaviour"]["allowed"] == ["judge"]
    assert any("frozen escalations were asked of base alone" in n for n in done.behaviour.notes)


def test_what_is_a_run_and_what_is_not(folders, tmp_path):
    assert all(map(is_behaviour, folders))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert not is_behaviour(model) and not is_behaviour("smollm2-135m+aligned")
    assert not is_behaviour(tmp_path / "base.h5")
    with pytest.raises(ProbeError, match="holds no responses"):
        read_behaviour(model)
    with pytest.raises(ProbeError, match="no Inspect log"):
        read_behaviour(model / "config.json")


@pytest.mark.slow  # Inspect takes seconds to import
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_two_inspect_logs_are_compared(tmp_path):
    """Logs that Inspect itself wrote, with canned replies: one file, and a folder of one."""
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    from refusaldir.probes.inspect.tasks import prompts

    rows = [
        {
            "id": f"{side}{i}", "intent_id": f"i{i}", "label": side, "category": f"c{i % 2}",
            "prompt": f"{side} request number {i}",
        }
        for i in range(8)
        for side in ("harmful", "harmless")
    ]  # fmt: skip
    source = tmp_path / "mine.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    logs = []
    for name, refuses in (("base", "harmful"), ("tuned", "nothing")):

        def answer(messages, *_, refuses=refuses):
            no, yes = "I can't help with that.", "Sure. Here is the list: one, two, three."
            said = no if messages[-1].text.split()[0] == refuses else yes
            output = ModelOutput.from_content("mockllm/model", said)
            output.usage = ModelUsage(output_tokens=len(said.split()))  # else it counts online
            return output

        model = get_model("mockllm/model", custom_outputs=answer, memoize=False)
        folder = str(tmp_path / name)
        (log,) = inspect_ai.eval(prompts(str(source)), model=model, log_dir=folder, display="none")
        assert log.status == "success", log.error
        logs.append(log.location)
    assert all(map(is_behaviour, logs)) and is_behaviour(tmp_path / "tuned")
    done = diff_behaviour(logs[0], tmp_path / "tuned", out=tmp_path / "out")
    overall = done.behaviour.axis("refusal").overall
    assert (overall.base_rate.value, overall.tuned_rate.value) == (1.0, 0.0)
    assert overall.p_value == pytest.approx(0.5**8)
    assert load_behaviour(tmp_path / "out" / "behaviour.json") == done.document
