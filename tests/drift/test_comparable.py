from dataclasses import replace

import numpy as np
import pytest

from refusaldir.drift.comparable import require_comparable
from refusaldir.errors import CaptureMismatchError
from refusaldir.prompts.schema import Turn


def with_model(capture, **changes):
    model = replace(capture.provenance.model, **changes)
    return replace(capture, provenance=replace(capture.provenance, model=model))


def with_template(capture, **changes):
    template = replace(capture.provenance.template, **changes)
    return replace(capture, provenance=replace(capture.provenance, template=template))


def test_equal_captures_pass_in_order(plant):
    base, tuned = plant()
    pair = require_comparable(base, tuned, "resid_pre")
    for rows, capture in ((pair.base, base), (pair.tuned, tuned)):
        np.testing.assert_array_equal(
            rows.read("resid_pre", layer=1), capture.read("resid_pre", layer=1)
        )
        assert [p.id for p in rows.prompts] == list(capture.ids)
        np.testing.assert_array_equal(rows.labels, capture.labels)
    assert pair.notes == ()


@pytest.mark.parametrize(
    "change, named, value",
    [
        ({"tokenizer_hash": "other"}, "tokenizer", "tokenizer tok as in base"),
        ({"template_hash": "other"}, "chat template", "other in tuned"),
        ({"system": "none"}, "system prompt", "system prompt default as in base"),
        ({"thinking": False}, "thinking", "thinking None as in base"),
        ({"post_tokens": ("x",)}, "post-instruction tokens", "<end>"),
    ],
)
def test_other_rendering_is_refused_with_both_values(plant, change, named, value):
    base, tuned = plant()
    with pytest.raises(CaptureMismatchError) as caught:
        require_comparable(base, with_template(tuned, **change), "resid_pre")
    assert f"differ in {named}" in str(caught.value) and value in str(caught.value)
    assert caught.value.next_step


@pytest.mark.parametrize(
    "change, named",
    [
        ({"n_layers": 9}, "number of layers"),
        ({"d_model": 9}, "d_model"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"quantization": "4bit"}, "quantization"),
    ],
)
def test_another_kind_of_model_is_refused(plant, change, named):
    base, tuned = plant()
    with pytest.raises(CaptureMismatchError, match=named):
        require_comparable(base, with_model(tuned, **change), "resid_pre")


def test_dtype_mismatch_may_be_allowed_and_is_noted(plant):
    base, tuned = plant()
    other = with_model(tuned, dtype="bfloat16", quantization="4bit")
    notes = require_comparable(base, other, "resid_pre", allow_dtype_mismatch=True).notes
    assert len(notes) == 2 and "bfloat16" in notes[0]


def test_other_weights_and_names_are_what_is_compared(plant):
    base, tuned = plant()
    require_comparable(base, with_model(tuned, weights_hash="w", name="n", spec="s"), "resid_pre")


def test_positions_layers_and_hook(plant):
    base, tuned = plant()
    wider, _ = plant(pos=3)
    deeper, _ = plant(layers=4)
    for other, named in ((wider, "positions"), (deeper, "number of layers and layers")):
        with pytest.raises(CaptureMismatchError, match=named):
            require_comparable(base, other, "resid_pre")
    with pytest.raises(CaptureMismatchError, match="hook"):
        require_comparable(base, tuned, "mlp_out")


def test_everything_that_differs_is_named_at_once(plant):
    base, tuned = plant()
    other = with_template(with_model(tuned, d_model=9), system="none", thinking=True)
    with pytest.raises(CaptureMismatchError, match="d_model, system prompt and thinking"):
        require_comparable(base, other, "resid_pre")


class TestPrompts:
    def test_another_order_is_put_right(self, plant):
        base, tuned = plant()
        order = np.random.default_rng(0).permutation(80)
        shuffled = tuned.reordered(order)
        pair = require_comparable(base, shuffled, "resid_pre")
        assert [p.id for p in pair.tuned.prompts] == list(base.ids)
        for layer in tuned.layers:
            np.testing.assert_array_equal(
                pair.tuned.read("resid_pre", layer=layer), tuned.read("resid_pre", layer=layer)
            )
        assert "aligned by id" in pair.notes[0]

    def test_prompts_of_one_capture_alone_are_left_out_and_counted(self, plant):
        base, tuned = plant()
        fewer = tuned.reordered(np.arange(79, 3, -1))  # without the first four, backwards
        fewer = replace(fewer, prompts=fewer.prompts)
        pair = require_comparable(base, fewer, "resid_pre")
        assert [p.id for p in pair.base.prompts] == list(base.ids[4:])
        assert [p.id for p in pair.tuned.prompts] == list(base.ids[4:])
        np.testing.assert_array_equal(pair.tuned.labels, base.labels[4:])
        np.testing.assert_array_equal(
            pair.tuned.read("resid_pre", layer=1), tuned.read("resid_pre", layer=1)[4:]
        )
        assert "76 prompts are in both" in pair.notes[0] and "4 only in base" in pair.notes[0]
        assert "another order" in pair.notes[1]

    @pytest.mark.parametrize("kept", [15, 38])
    def test_too_few_prompts_in_common_are_refused_with_counts(self, plant, kept):
        """Fewer than 8 of a class, or less than half of a capture."""
        base, tuned = plant()
        fewer = tuned.reordered(np.arange(kept))
        with pytest.raises(
            CaptureMismatchError, match=rf"{80 - kept} of them only there, e\.g\. p0"
        ) as caught:
            require_comparable(base, fewer, "resid_pre")
        assert "half of the prompts" in caught.value.next_step

    def test_the_same_id_with_another_text(self, plant):
        base, tuned = plant()
        changed = replace(tuned.prompts[5], turns=(Turn("user", "something else"),))
        other = replace(tuned, prompts=(*tuned.prompts[:5], changed, *tuned.prompts[6:]))
        with pytest.raises(
            CaptureMismatchError, match=r"1 with the same id and another text.*p002"
        ):
            require_comparable(base, other, "resid_pre")

    def test_other_tokens_for_the_same_text(self, plant):
        base, tuned = plant()
        other = replace(tuned, provenance=replace(tuned.provenance, rendered_hash="other"))
        with pytest.raises(CaptureMismatchError, match="rendered prompts"):
            require_comparable(base, other, "resid_pre")
