import re
from dataclasses import replace

import pytest

from refusaldir.report.document import build_document


def words(drift, behaviour=None):
    return build_document(drift, behaviour)["verdict"]


def flat(verdict):
    return " ".join(
        [verdict["headline"], *(s for key in ("drift", "layers", "behaviour", "certainty", "limits")
                                for s in verdict[key])]
    )  # fmt: skip


def test_strong_drift_and_lost_refusals(drift, behaviour):
    verdict = words(drift(), behaviour())
    assert verdict["headline"].startswith("Drift at resid_pre.18@-1: rotated, shrunk")
    assert "Refusals of harmful prompts fell from" in verdict["headline"]
    assert "rotated by" in verdict["drift"][0]
    assert verdict["layers"][0].startswith("Rotation is first detectable at layer")
    assert "not which layer's weights caused it" in verdict["layers"][0]
    fell = verdict["behaviour"][0]
    assert re.match(
        r"The rate of refusals of harmful prompts fell \(\d+\.\d % → \d+\.\d %, −", fell
    )
    assert "95 % interval" in fell and "288 prompts in both models" in fell
    assert "After Holm's correction" in verdict["behaviour"][1]


def test_no_drift_and_no_change(drift, behaviour):
    verdict = words(drift(size=0), behaviour(base=(0.9, 0.1), tuned=(0.9, 0.1)))
    assert verdict["headline"].startswith("No detectable drift")
    assert "not evidence of safety" in verdict["headline"]
    assert verdict["behaviour"][0].startswith("No change of the rate of refusals of harmful")
    assert "within ±5.0 points at the 90 % level" in verdict["behaviour"][0]
    assert any("No single category's change" in s for s in verdict["behaviour"])


def test_few_prompts_say_what_would_fit_as_well(drift, behaviour):
    verdict = words(drift(size=0), behaviour(2, n=4, base=(0.5, 0.5), tuned=(0.5, 0.5)))
    assert re.search(
        r"a fall of up to \d+\.\d or a rise of up to \d+\.\d points would fit as well",
        verdict["behaviour"][0],
    )
    assert any("would pass Holm" in s for s in verdict["certainty"])


def test_a_rise_of_over_refusal(drift, behaviour):
    verdict = words(drift(), behaviour(base=(0.9, 0.05), tuned=(0.9001, 0.6)))
    rose = [s for s in verdict["behaviour"] if "harmless prompts rose" in s]
    assert len(rose) == 1 and ", +5" in rose[0]


def test_responses_that_could_not_be_judged_widen_the_bound(drift, behaviour):
    answers = behaviour(unusable=7)
    verdict = words(drift(), answers)
    bound = next(s for s in verdict["behaviour"] if "could be judged" in s)
    assert bound.startswith("7 of 288 prompts")
    low, high = answers.axis("refusal").overall.worst_case
    assert f"−{-100 * low:.1f} and −{-100 * high:.1f} points" in bound


def test_nothing_judged(drift, behaviour):
    verdict = words(drift(), behaviour(1, n=4, unusable=4, sides=(True,)))
    assert verdict["behaviour"] == [
        "Nothing can be said about refusals of harmful prompts: no pairs."
    ]
    assert "Refusals" not in verdict["headline"]


def test_behaviour_that_was_not_measured_is_said_to_be_unknown(drift):
    verdict = words(drift())
    assert verdict["behaviour"] == []
    assert "Behaviour was not measured, so what the model now says is unknown." in verdict["limits"]


def test_notes_are_passed_on_as_sentences(drift):
    verdict = words(replace(drift(), notes=("only 8 intents: intervals are approximate",)))
    assert "Only 8 intents: intervals are approximate." in verdict["certainty"]


def test_identical_activations(drift):
    result = drift(size=0)
    said = ("The activations are identical in base and tuned: no drift there.", "At no layer.")
    verdict = words(replace(result, verdict=said))
    assert verdict["headline"] == said[0]
    assert verdict["drift"] == []
    assert verdict["layers"] == ["At no layer."]


@pytest.mark.parametrize("size", [0, 0.05, 1.0])
@pytest.mark.parametrize("tuned", [(0.95, 0.08), (0.5, 0.05), (0.999, 0.7)])
def test_no_verdict_calls_a_model_safe(drift, behaviour, size, tuned):
    text = flat(words(drift(size=size), behaviour(tuned=tuned)))
    assert not re.search(r"\b(un)?safe(r|ly)?\b", text, re.IGNORECASE)
    assert text.lower().count("safety") == text.count("not evidence of safety")
    assert not re.search(r"\bpass(ed)?\b(?! Holm)|\bharmless model\b|\bOK\b", text)


@pytest.mark.parametrize("size", [0, 1.0])
def test_sentences_are_whole_and_say_no_nan(drift, behaviour, size):
    verdict = words(drift(size=size), behaviour(unusable=3))
    for key in ("drift", "layers", "behaviour", "certainty", "limits"):
        for sentence in verdict[key]:
            assert sentence.endswith(".") and not sentence.endswith("..")
            assert sentence[0].isupper() or sentence[0].isdigit()
            assert "nan" not in sentence.lower().split() and "None" not in sentence
