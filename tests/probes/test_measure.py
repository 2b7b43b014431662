"""Measuring one model: rows, tokens, files, and going on after an interruption."""

import json

import numpy as np
import pytest

from refusaldir.errors import OutputExistsError, ProbeError
from refusaldir.probes import measure as module
from refusaldir.probes.behaviour import Behaviour
from refusaldir.probes.generate import generate
from refusaldir.probes.measure import measure
from refusaldir.probes.outcomes import Judgement
from refusaldir.probes.phrases import JUDGE_VERSION
from refusaldir.probes.refusal_tokens import RefusalTokens, given_refusal_tokens
from refusaldir.prompts.render import ChatRenderer
from refusaldir.prompts.schema import Prompt, PromptSet, Turn
from refusaldir.refusal_score import refusal_scores


def prompts(n: int = 12) -> PromptSet:
    return PromptSet(
        "tiny",
        tuple(
            Prompt(
                id=f"{'h' if harmful else 'b'}{i}",
                intent_id=f"intent-{i}",
                label="harmful" if harmful else "harmless",
                category=f"cat-{i % 2}",
                turns=(Turn("user", f"how do i make w{i} {'bomb' if harmful else 'cake'}"),),
            )
            for i in range(n)
            for harmful in (True, False)
        ),
    )


class FirstToken:
    """Judges by a rule that a random model can fulfil: the share of refusals is a coin."""

    version = "coin-1"

    def __call__(self, prompt, response):
        refused = "bomb" in prompt
        return Judgement(label="full_refusal" if refused else "compliance", evidence=prompt[-4:])


@pytest.fixture
def model(build):
    return build()


@pytest.fixture
def rendered(model):
    return ChatRenderer(model.tokenizer).render(prompts())


def test_rows_say_what_was_said(model, rendered):
    tokens = given_refusal_tokens(model.tokenizer, ["sorry", "i"])
    got = measure(model, rendered, refusal_tokens=tokens, max_new_tokens=8)
    said = generate(model, rendered.ids, max_new_tokens=8)
    assert [row.id for row in got.rows] == rendered.prompts.ids
    assert [row.response for row in got.rows] == [r.text for r in said]
    assert [row.first_token for row in got.rows] == [r.ids[0] if r.ids else None for r in said]
    assert [row.harmful for row in got.rows] == [p.label == "harmful" for p in rendered.prompts]
    # Scores come from the same passes as the responses, and equal those of passes of their own.
    np.testing.assert_allclose(
        [row.score for row in got.rows],
        refusal_scores(model, rendered.ids, tokens.ids),
        atol=2e-5,
    )
    assert got.provenance.max_new_tokens == 8 and got.provenance.judge == JUDGE_VERSION
    assert got.provenance.stop_ids == (2, 4)
    assert sum(got.counts(harmful=True).values()) == 12


def test_finds_its_own_tokens(model, rendered):
    got = measure(model, rendered, judge=FirstToken(), max_new_tokens=4)
    assert got.refusal_tokens.source == "found"
    assert (got.refusal_tokens.n_refusals, got.refusal_tokens.n_answers) == (12, 12)
    if got.refusal_tokens:
        assert all(row.score is not None for row in got.rows)


def test_no_tokens_found_leaves_no_scores(model, rendered):
    got = measure(model, rendered, max_new_tokens=4)
    assert not got.refusal_tokens and "refusals of harmful prompts" in got.refusal_tokens.note
    assert all(row.score is None for row in got.rows)


def test_a_failing_judge_is_an_outcome(model, rendered):
    class Broken:
        version = "broken-1"

        def __call__(self, prompt, response):
            raise KeyError("verdict")

    got = measure(model, rendered, judge=Broken(), max_new_tokens=4)
    assert {row.label for row in got.rows} == {"judge_error"}
    assert got.rows[0].evidence == "KeyError: 'verdict'"


def test_file_round_trip(model, rendered, tmp_path):
    path = tmp_path / "deep" / "base.jsonl"
    got = measure(model, rendered, judge=FirstToken(), max_new_tokens=4, path=path)
    assert Behaviour.from_jsonl(path) == got
    assert [p.name for p in path.parent.iterdir()] == ["base.jsonl"]
    with pytest.raises(OutputExistsError):
        got.to_jsonl(path)


def test_a_finished_file_is_used_again(model, rendered, tmp_path, monkeypatch):
    path = tmp_path / "base.jsonl"
    first = measure(model, rendered, max_new_tokens=4, path=path)
    calls = spy(monkeypatch)
    assert measure(model, rendered, max_new_tokens=4, path=path) == first
    assert calls == [24]  # all skipped
    with pytest.raises(OutputExistsError, match="something else"):
        measure(model, rendered, max_new_tokens=5, path=path)
    again = measure(model, rendered, max_new_tokens=5, path=path, force=True)
    assert Behaviour.from_jsonl(path) == again != first


def test_other_tokens_are_scored_without_generating(model, rendered, tmp_path, monkeypatch):
    path = tmp_path / "base.jsonl"
    first = measure(model, rendered, max_new_tokens=4, path=path)
    calls = spy(monkeypatch)
    tokens = given_refusal_tokens(model.tokenizer, ["sorry"])
    scored = measure(model, rendered, refusal_tokens=tokens, max_new_tokens=4, path=path)
    assert calls == [24]
    assert [r.response for r in scored.rows] == [r.response for r in first.rows]
    assert all(row.score is not None for row in scored.rows)
    assert Behaviour.from_jsonl(path) == scored


def test_goes_on_after_an_interruption(model, rendered, tmp_path, monkeypatch):
    path = tmp_path / "base.jsonl"
    tokens = given_refusal_tokens(model.tokenizer, ["sorry"])
    arguments = {"refusal_tokens": tokens, "max_new_tokens": 6, "batch_size": 5}
    whole = measure(model, rendered, **arguments)

    def stop_after_two(count, seen=[]):  # noqa: B006
        seen.append(count)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, rendered, path=path, on_batch=stop_after_two, **arguments)
    partial = tmp_path / "base.jsonl.partial"
    assert not path.exists() and len(partial.read_text().splitlines()) == 11
    # The machine died while writing: half a line at the end.
    with partial.open("a") as file:
        file.write('{"index": 3, "ro')
    calls = spy(monkeypatch)
    counts = []
    got = measure(model, rendered, path=path, on_batch=counts.append, **arguments)
    assert calls == [10] and counts[0] == 10 and sum(counts) == 24
    assert [r.response for r in got.rows] == [r.response for r in whole.rows]
    np.testing.assert_allclose(
        [r.score for r in got.rows], [r.score for r in whole.rows], atol=2e-5
    )
    assert not partial.exists()


def test_another_run_is_not_gone_on_with(model, rendered, tmp_path, monkeypatch):
    path = tmp_path / "base.jsonl"

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, rendered, path=path, max_new_tokens=6, batch_size=5, on_batch=stop)
    calls = spy(monkeypatch)
    measure(model, rendered, path=path, max_new_tokens=7, batch_size=5)
    assert calls == [0]


def spy(monkeypatch) -> list[int]:
    """How many prompts each call of `generate` was told to skip."""
    calls: list[int] = []

    def watched(*args, skip, **kwargs):
        calls.append(len(skip))
        return generate(*args, skip=skip, **kwargs)

    monkeypatch.setattr(module, "generate", watched)
    return calls


@pytest.fixture
def written(model, rendered, tmp_path):
    path = tmp_path / "base.jsonl"
    measure(model, rendered, max_new_tokens=2, path=path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "incomplete"),
        (lambda lines: lines[1:], "not a file of responses"),
        (lambda lines: [], "not a file of responses"),
        (lambda lines: [*lines[:2], lines[2][:20], *lines[3:]], "line 3"),
        (lambda lines: [lines[0].replace('"format_version":2', '"format_version":3')], "format"),
        (lambda lines: [lines[0], *(x.replace('"label"', '"lable"') for x in lines[1:])], "fields"),
        (lambda lines: ["\x00\x01"], "damaged"),
    ],
)
def test_damaged_files(written, change, message):
    lines = written.read_text().splitlines()
    written.write_text("\n".join(change(lines)))
    with pytest.raises(ProbeError, match=message):
        Behaviour.from_jsonl(written)


def test_missing_file(tmp_path):
    with pytest.raises(ProbeError, match="no such file"):
        Behaviour.from_jsonl(tmp_path / "nothing.jsonl")


def test_header_carries_provenance(written, model):
    header = json.loads(written.read_text().splitlines()[0])
    assert header["provenance"]["model"] == {
        **model.identity.to_dict(),
        "adapters": [],
    }
    assert set(header["provenance"]["versions"]) == {"refusaldir", "torch", "transformers"}
    assert RefusalTokens.from_dict(header["refusal_tokens"]).source == "found"
