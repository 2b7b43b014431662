"""The verdict in words: no drift, small drift, drift of which kind."""

from dataclasses import replace

import numpy as np
import pytest

from refusaldir.drift.compare import compare
from refusaldir.drift.result import Margins
from refusaldir.drift.verdict import findings, question_level

WIDE = Margins(rotation=180, norm=10, translation=100, separability=100)


def headline(result):
    return result.verdict[0]


def kinds(result, **wanted):
    return {f.kind for f in result.findings if all(getattr(f, k) == v for k, v in wanted.items())}


class TestKinds:
    def test_each_kind_has_its_own_word(self, plant):
        assert "rotated" in headline(compare(*plant(degrees=60, norm=8, intents=60)))
        assert "shrunk" in headline(compare(*plant(ratio=0.5, norm=8, intents=60)))
        assert "grown" in headline(compare(*plant(ratio=1.6, norm=8, intents=60)))

    def test_a_shift_names_its_side(self, plant):
        base, tuned = plant(norm=8, intents=60)
        r = base.values["resid_pre"]
        harmful = base.labels == 1
        step = r[harmful].mean(axis=0) - r[~harmful].mean(axis=0)
        moved = tuned.mapped(lambda v: v - 0.5 * step)  # everything towards harmless
        assert "harmful prompts moved to the harmless side" in headline(compare(base, moved))

    def test_noise_makes_less_separable(self, plant):
        base, tuned = plant(norm=8, intents=60)
        rng = np.random.default_rng(0)
        noisy = tuned.mapped(lambda v: v + 4 * rng.standard_normal(v.shape))
        assert "less separable" in headline(compare(base, noisy))


class TestMargins:
    def test_no_drift_is_never_called_safe(self, plant):
        base, tuned = plant(degrees=0, norm=8, intents=60)
        words = " ".join(compare(base, tuned).verdict)
        assert words.startswith("No detectable drift") and "not evidence of safety" in words

    def test_every_change_within_its_margin(self, plant):
        base, tuned = plant(degrees=0, norm=8, intents=60)
        assert "Every change is within its margin" in headline(compare(base, tuned, margins=WIDE))
        none = Margins(rotation=0, norm=0, translation=0, separability=0)
        strict = compare(base, tuned, margins=none)
        assert "within" not in headline(strict) and not kinds(strict, small=True)

    def test_detectable_but_small(self, plant):
        drifted = plant(degrees=20, norm=8, intents=60)
        wide = compare(*drifted, margins=WIDE)
        assert headline(wide).startswith("Detectable but small drift")
        assert "It is within the margin of 180°." in " ".join(wide.verdict)
        usual = compare(*drifted)
        assert headline(usual).startswith("Drift at") and "rotation" in kinds(usual, detected=True)
        assert usual.to_dict()["margins"]["rotation"] == 10

    def test_small_needs_the_whole_interval(self, plant):
        """A point inside the margin with a wide interval is not small."""
        result = compare(*plant(degrees=8, norm=2.5, intents=24, seed=3))
        (finding,) = (f for f in result.findings if f.kind == "rotation")
        assert finding.small is bool(finding.estimate.lower >= np.cos(np.radians(10)))
        at = replace(result.at_site, rotation=replace(finding.estimate, lower=0.5, upper=1.0))
        assert findings(at)[0].small is False


def test_what_cannot_be_told_is_neither_detected_nor_small(plant):
    base, tuned = plant(norm=8)
    result = compare(base, tuned)
    absent = replace(result.at_site.rotation, value=None, lower=None, upper=None, note="not there")
    finding = findings(replace(result.at_site, rotation=absent))[0]
    assert finding.detected is None and finding.small is None
    assert "not there" in finding.sentence


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_questions_share_the_error_rate(level):
    assert 6 * (1 - question_level(level)) == pytest.approx(1 - level)
