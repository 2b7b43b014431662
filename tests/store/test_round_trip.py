import json
import tracemalloc

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refusaldir.errors import PromptError, StoreError
from refusaldir.prompts.schema import Prompt, PromptSet, Turn
from refusaldir.store import Capture, CaptureWriter, peek, summary
from refusaldir.store.schema import Layout


def test_everything_comes_back(case, stored):
    with Capture.open(stored) as capture:
        assert capture.provenance == case.provenance == peek(stored)
        assert capture.prompts == case.prompts
        assert capture.ids == tuple(case.prompts.ids)
        assert capture.labels.tolist() == case.prompts.labels
        assert capture.labels.dtype == np.int64
        assert capture.lengths.tolist() == case.lengths
        assert capture.hooks == ("resid_pre", "mlp_out")
        assert capture.layers == (1, 4, 5)
        assert capture.positions.offsets == (-5, -2, -1)
        assert (capture.d_model, capture.storage_dtype) == (8, "float32")
        for hook, values in case.values.items():
            for i, layer in enumerate(capture.layers):
                everything = capture.read(hook, layer=layer)
                assert everything.dtype == np.float32
                np.testing.assert_array_equal(everything, values[:, i])
                for j, position in enumerate(capture.positions.offsets):
                    one = capture.read(hook, layer=layer, position=position)
                    np.testing.assert_array_equal(one, values[:, i, j])


def test_only_the_capture_is_left_in_the_folder(stored):
    assert [p.name for p in stored.parent.iterdir()] == ["c.h5"]


def test_mean_diff_is_harmful_minus_harmless_in_float64(case, stored):
    harmful = np.array(case.prompts.labels) == 1
    with Capture.open(stored) as capture:
        for hook, values in case.values.items():
            wide = values.astype(np.float64)
            expected = wide[harmful].mean(0) - wide[~harmful].mean(0)
            np.testing.assert_array_equal(capture.mean_diff(hook), expected.astype(np.float32))
            assert np.abs(expected + capture.mean_diff(hook)).max() > 0.1  # The sign matters.
            for label, rows in ((1, harmful), (0, ~harmful)):
                mean = wide[rows].mean(0).astype(np.float32)
                np.testing.assert_array_equal(capture.class_mean(hook, label), mean)


def test_mean_diff_keeps_a_small_difference_on_a_large_offset(new_case, tmp_path):
    # In float32, sums of 1e4 lose the planted 1e-3: this fails without float64 accumulation.
    case = new_case(400, layers=(0,), offsets=(-1,), d_model=4, hooks=("resid_pre",))
    values = np.full((400, 1, 1, 4), 1e4, dtype=np.float32)
    step = np.spacing(np.float32(1e4))
    values[::2] += step  # Harmful prompts have even indices.
    path = case.with_values("resid_pre", values).write(tmp_path / "c.h5", batch=64)
    with Capture.open(path) as capture:
        np.testing.assert_allclose(capture.mean_diff("resid_pre"), step, rtol=1e-9)


def test_batches_and_their_order_do_not_matter(case, tmp_path):
    one = case.write(tmp_path / "a.h5", batch=1)
    all_at_once = case.write(tmp_path / "b.h5", batch=10)
    with Capture.open(one) as a, Capture.open(all_at_once) as b:
        np.testing.assert_array_equal(a.mean_diff("mlp_out"), b.mean_diff("mlp_out"))
        np.testing.assert_array_equal(a.read("mlp_out", layer=4), b.read("mlp_out", layer=4))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_round_trip_of_any_finite_values_and_any_text(data, new_case, tmp_path):
    n = data.draw(st.integers(2, 9), label="n")
    d_model = data.draw(st.integers(1, 5), label="d_model")
    storage = data.draw(st.sampled_from(["float32", "bfloat16"]), label="storage")
    case = new_case(n, layers=(0, 3), offsets=(-2, -1), d_model=d_model, hooks=("resid_mid",))
    shape = (n, 2, 2, d_model)
    if storage == "float32":
        element = st.floats(width=32, allow_nan=False, allow_infinity=False)
        values = data.draw(hnp.arrays(np.float32, shape, elements=element))
    else:
        finite = st.integers(0, 0xFFFF).filter(lambda bits: bits & 0x7F80 != 0x7F80)
        values = data.draw(hnp.arrays(np.uint16, shape, elements=finite))
    path = case.with_values("resid_mid", values).write(
        tmp_path / "c.h5", storage_dtype=storage, force=True
    )
    if storage == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    with Capture.open(path) as capture:
        for i, layer in enumerate((0, 3)):
            read = capture.read("resid_mid", layer=layer)
            assert read.tobytes() == np.ascontiguousarray(values[:, i]).tobytes()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(TEXT, min_size=2, max_size=5), source=TEXT)
def test_any_prompt_text_comes_back(texts, source, tmp_path, make_provenance):
    source = source.replace("\0", "")
    prompts = PromptSet(
        "any",
        tuple(
            Prompt(
                id=f"{i}",
                intent_id="i",
                label="harmful" if i else "harmless",
                turns=(Turn("user", text),),
                source=source,
            )
            for i, text in enumerate(texts)
        ),
    )
    provenance = make_provenance(prompts, layers=(0,), offsets=(-1,), d_model=1)
    zero = np.zeros((len(texts), 1, 1, 1), dtype=np.float32)
    with CaptureWriter.create(
        tmp_path / "c.h5",
        provenance=provenance,
        prompts=prompts,
        lengths=[3] * len(texts),
        d_model=1,
        force=True,
    ) as writer:
        writer.write(range(len(texts)), {"resid_pre": zero, "mlp_out": zero})
        writer.finish()
    with Capture.open(tmp_path / "c.h5") as capture:
        assert capture.prompts == prompts


def test_other_programs_can_read_it(case, stored):
    """Plain h5py, with nothing of ours: the layout in activations/README.md."""
    with h5py.File(stored) as file:
        assert file["resid_pre"].shape == (10, 3, 3, 8)
        assert [dim.label for dim in file["resid_pre"].dims] == [
            "prompt",
            "layer",
            "pos",
            "d_model",
        ]
        assert file["resid_pre"].dims[1][0][...].tolist() == [1, 4, 5]
        assert file["axes/pos"][...].tolist() == [-5, -2, -1]
        assert file["prompts/id"].asstr()[:3].tolist() == ["p0", "p1", "p2"]
        assert file["prompts/text"].asstr()[1] == case.prompts[1].text
        turns = bytes(file["prompts/turns"][...]).splitlines()
        assert json.loads(turns[0])[-1]["content"] == case.prompts[0].text
        assert file.attrs["model"] == "tiny"
        assert file.attrs["adapters"].tolist() == ["a", "b"]
        assert file.attrs["version_torch"] == "2"
        assert file.attrs["fingerprint"] == case.provenance.fingerprint()
        assert json.loads(file.attrs["provenance"])["model"]["weights_hash"] == "w0"
        assert bool(file.attrs["complete"])
        assert file["done"][...].all()


def test_long_provenance_is_no_problem(case, tmp_path):
    # HDF5 attributes were once limited to 64 KiB; a system prompt can be longer.
    from dataclasses import replace

    template = replace(case.provenance.template, system="Sei höflich. " * 20_000)
    case = replace(case, provenance=replace(case.provenance, template=template))
    assert peek(case.write(tmp_path / "c.h5")) == case.provenance


def test_chunks_hold_one_layer_and_stay_near_a_mebibyte():
    for d_model, positions, dtype in (
        (576, 6, "float32"),
        (8192, 6, "bfloat16"),
        (64, 1, "float32"),
    ):
        layout = Layout(
            n_prompts=1000,
            n_layers=30,
            n_positions=positions,
            d_model=d_model,
            storage_dtype=dtype,
        )
        prompts, layers, pos, width = layout.chunks
        assert (layers, pos, width) == (1, positions, d_model)
        nbytes = prompts * pos * width * layout.dtype.itemsize
        assert prompts == 256 or 2**19 < nbytes <= 2**20


def test_memory_does_not_grow_with_the_number_of_prompts(new_case, tmp_path):
    """Means of 24 MB of activations within 20 MB; the blocks are 8 MiB."""
    case = new_case(2000, layers=(0, 1, 2), offsets=(-1,), d_model=1024, hooks=("resid_pre",))
    with case.writer(tmp_path / "c.h5") as writer:
        for start in range(0, 2000, 100):
            rows = np.arange(start, start + 100)
            writer.write(rows, case.batch(rows))
        tracemalloc.start()
        writer.finish()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert case.values["resid_pre"].nbytes > 24e6
    assert peak < 20e6


def test_summary_is_json_and_counts_right(case, stored):
    content = json.loads(json.dumps(summary(stored)))
    assert content["shape"] == {"prompt": 10, "layer": 3, "pos": 3, "d_model": 8}
    assert content["hooks"] == ["resid_pre", "mlp_out"]
    assert content["positions"][2] == {"offset": -1, "label": "t\0-1"}
    assert content["size_bytes"] == stored.stat().st_size
    prompts = content["prompts"]
    assert prompts["classes"] == {"harmful": 5, "harmless": 5}
    assert prompts["categories"]["privacy"] == {"harmful": 3, "harmless": 3}
    assert prompts["splits"]["none"] == {"harmful": 0, "harmless": 2}
    assert prompts["n_tokens"] == {"min": 10, "median": 14.5, "max": 19}
    assert prompts["n_intents"] == 5
    assert prompts["notes"] == ["one prompt was dropped"]
    harmful = np.array(case.prompts.labels) == 1
    values = case.values["mlp_out"].astype(float)
    diff = values[harmful].mean(0) - values[~harmful].mean(0)
    np.testing.assert_allclose(
        content["mean_diff_norm"]["mlp_out"], np.linalg.norm(diff, axis=-1), rtol=1e-6
    )


def test_sites_that_were_not_captured_are_named(stored):
    with Capture.open(stored) as capture:
        with pytest.raises(StoreError, match=r"hook point.*resid_pre, mlp_out.*got resid_post"):
            capture.read("resid_post", layer=1)
        with pytest.raises(StoreError, match=r"layer.*1, 4, 5.*got 0"):
            capture.read("resid_pre", layer=0)
        with pytest.raises(StoreError, match=r"position.*-5, -2, -1.*got -3"):
            capture.read("resid_pre", layer=1, position=-3)
        with pytest.raises(StoreError, match="hook point"):
            capture.mean_diff("resid_post")


@pytest.mark.parametrize("value", ["a\0b", "x" * 5000])
def test_short_fields_that_cannot_be_stored_are_refused(value, tmp_path, make_provenance):
    prompts = PromptSet(
        "bad",
        (
            Prompt(id="h", intent_id="i", label="harmful", turns=(Turn("user", "x"),)),
            Prompt(
                id="s", intent_id="i", label="harmless", turns=(Turn("user", "x"),), category=value
            ),
        ),
    )
    with pytest.raises(PromptError, match=r"'category'.*'s'"):
        CaptureWriter.create(
            tmp_path / "c.h5",
            provenance=make_provenance(prompts),
            prompts=prompts,
            lengths=[1, 1],
            d_model=8,
        )
    assert not list(tmp_path.iterdir())
