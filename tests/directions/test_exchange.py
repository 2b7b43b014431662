"""Direction files: our own, those of the reference code, and those for tools that steer."""

import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from refusaldir.capture import capture
from refusaldir.directions.exchange import direction_bytes, load_direction
from refusaldir.directions.mean_diff import Direction, direction_at, mean_diff
from refusaldir.directions.reference import import_direction
from refusaldir.directions.steering import EXPORTS, control_vector_bytes, steering_vector_bytes
from refusaldir.errors import DirectionError, StoreError
from refusaldir.hooks import Addition, intervene
from refusaldir.records import Positions, Site

VECTOR = np.random.default_rng(0).standard_normal(32) * 3


def at(layer, hook="resid_pre", position=-2, vector=VECTOR):
    return Direction(
        vector=vector,
        site=Site(hook=hook, layer=layer, position=position),
        n_harmful=5,
        n_harmless=7,
    )


class TestOurOwn:
    def test_round_trip(self, plant, tmp_path):
        base, _ = plant()
        made = direction_at(base, Site(hook="resid_pre", layer=1, position=-2))
        (tmp_path / "d.safetensors").write_bytes(direction_bytes(made))
        back = load_direction(tmp_path / "d.safetensors")
        np.testing.assert_array_equal(back.vector, made.vector.astype(np.float32))
        for name in ("site", "estimator", "n_harmful", "n_harmless", "provenance"):
            assert getattr(back, name) == getattr(made, name)

    @pytest.mark.parametrize(
        "header, message",
        [
            ({}, "another safetensors file"),
            ({"format": "refusaldir-direction"}, "format version None"),
            ({"format": "refusaldir-direction", "format_version": 9}, "format version 9"),
            ({"format": "refusaldir-direction", "format_version": 1}, "complete header"),
        ],
    )
    def test_refuses_what_it_did_not_write(self, tmp_path, header, message):
        path = tmp_path / "d.safetensors"
        tensors = {"direction": VECTOR.astype(np.float32)}
        save_file(tensors, path, metadata={"refusaldir": json.dumps(header)})
        with pytest.raises(StoreError, match=message):
            load_direction(path)

    def test_refuses_what_is_not_safetensors(self, tmp_path):
        (tmp_path / "d.safetensors").write_bytes(b"\x80\x04 no")
        for name in ("d.safetensors", "missing.safetensors"):
            with pytest.raises(StoreError, match=name):
                load_direction(tmp_path / name)


class Bomb:
    """Pickled, a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def reference(tmp_path):
    """What the reference code leaves behind: a direction, where it lives, and all candidates."""
    mean_diffs = torch.from_numpy(np.random.default_rng(1).standard_normal((5, 3, 32)))
    torch.save(mean_diffs, tmp_path / "mean_diffs.pt")
    torch.save(mean_diffs[-2, 1], tmp_path / "direction.pt")
    (tmp_path / "direction_metadata.json").write_text('{"pos": -2, "layer": 1}')
    return tmp_path


class TestReference:
    def test_reads_the_metadata_beside_it(self, reference):
        found = import_direction(reference / "direction.pt")
        assert found.site == Site(hook="resid_pre", layer=1, position=-2)
        expected = torch.load(reference / "direction.pt", weights_only=True).numpy()
        np.testing.assert_array_equal(found.vector, expected)
        assert (found.estimator, found.n_harmful, found.provenance) == ("imported", 0, None)

    def test_options_metadata_and_candidates_agree(self, reference):
        lone = reference / "alone"
        lone.mkdir()
        torch.save(torch.load(reference / "direction.pt", weights_only=True)[None], lone / "d.pt")
        ways = (
            import_direction(reference / "direction.pt", layer=1, position=-2),
            import_direction(lone / "d.pt", layer=1, position=-2),
            import_direction(lone / "d.pt", metadata=reference / "direction_metadata.json"),
            import_direction(reference / "mean_diffs.pt", layer=1, position=-2),
        )
        first = import_direction(reference / "direction.pt")
        for way in ways:
            assert way.site == first.site
            np.testing.assert_array_equal(way.vector, first.vector)
        other = import_direction(reference / "mean_diffs.pt", layer=2, position=-2)
        assert not np.allclose(other.vector, first.vector)

    @pytest.mark.parametrize("given, missing", [({"layer": 1}, "position"), ({}, "layer")])
    def test_says_which_option_is_missing(self, reference, given, missing):
        with pytest.raises(DirectionError, match=f"Give --{missing}"):
            import_direction(reference / "mean_diffs.pt", **given)

    @pytest.mark.parametrize(
        "name, given, message",
        [
            ("direction.pt", {"layer": 2}, "layer given is not the one"),
            ("direction.pt", {"position": -1}, "position given is not the one"),
            ("mean_diffs.pt", {"layer": 3, "position": -1}, "no such layer.*0 to 2"),
            ("mean_diffs.pt", {"layer": -1, "position": -1}, "no such layer"),
            ("mean_diffs.pt", {"layer": 1, "position": -6}, "no such position.*-5 to -1"),
            ("mean_diffs.pt", {"layer": 1, "position": 0}, "no such position"),
            ("missing.pt", {}, "no such file"),
        ],
    )
    def test_refuses_a_site_that_is_not_there(self, reference, name, given, message):
        with pytest.raises((DirectionError, StoreError), match=message):
            import_direction(reference / name, **given)

    def test_checks_the_model(self, reference, build):
        path, identity = reference / "direction.pt", build().identity
        assert import_direction(path, model=identity).site.layer == 1
        torch.save(torch.ones(33), path)
        with pytest.raises(DirectionError, match=r"width.*expected d_model 32.*got 33"):
            import_direction(path, model=identity)
        torch.save(torch.ones(9, 8, 32), reference / "deep.pt")
        with pytest.raises(DirectionError, match=r"no such layer.*0 to 2"):
            import_direction(reference / "deep.pt", layer=3, position=-1, model=identity)

    @pytest.mark.parametrize(
        "content, message",
        [
            (torch.zeros(32), "only zeros"),
            (torch.full((32,), float("nan")), "not finite"),
            (torch.ones(2, 32), "not a direction"),
            (torch.ones(32, dtype=torch.int64), "something other"),
            (torch.ones(32).to_sparse(), "something other"),
            ({"direction": torch.ones(32)}, "something other.*dict"),
        ],
    )
    def test_refuses_other_content(self, tmp_path, content, message):
        torch.save(content, tmp_path / "d.pt")
        with pytest.raises((DirectionError, StoreError), match=message):
            import_direction(tmp_path / "d.pt", layer=1, position=-1)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_hostile_pickle_runs_nothing(self, tmp_path, zipped):
        path, trace = tmp_path / "d.pt", tmp_path / "ran"
        torch.save(Bomb(trace), path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(StoreError, match="nothing in it was run") as caught:
            import_direction(path, layer=1, position=-1)
        assert "\n" not in str(caught.value)
        assert not trace.exists()
        torch.load(path, weights_only=False)  # The attack is a real one.
        assert trace.exists()

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."])
    def test_refuses_damaged_files(self, tmp_path, content):
        (tmp_path / "d.pt").write_bytes(content)
        with pytest.raises(StoreError, match=re.escape("d.pt")):
            import_direction(tmp_path / "d.pt", layer=1, position=-1)

    @pytest.mark.parametrize("content", ["[]", "{}", '{"pos": "-1"}', "no", '{"layer": true}'])
    def test_refuses_other_metadata(self, reference, content):
        (reference / "direction_metadata.json").write_text(content)
        with pytest.raises(StoreError, match="metadata"):
            import_direction(reference / "direction.pt")

    def test_its_layers_and_positions_are_ours(self, build, sequences, tmp_path):
        """Their capture, by pre-hooks on the blocks and padding on the left, against ours."""
        model, labels = build(), np.arange(len(sequences)) % 2
        means = torch.zeros(2, 3, 3, 32, dtype=torch.float64)  # class, position, layer
        for label in (0, 1):
            rows = [s for s, y in zip(sequences, labels, strict=True) if y == label]
            longest = max(map(len, rows))
            ids = torch.tensor([[0] * (longest - len(s)) + s for s in rows])
            mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in rows])

            def keep(layer, module, args, kwargs, label=label):
                stream = args[0] if args else kwargs["hidden_states"]
                means[label, :, layer] += stream[:, [-3, -2, -1]].double().mean(dim=0)

            handles = [
                block.register_forward_pre_hook(
                    lambda m, a, k, i=i, keep=keep: keep(i, m, a, k), with_kwargs=True
                )
                for i, block in enumerate(model.hf.model.layers)
            ]
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            model.hf(input_ids=ids, attention_mask=mask, position_ids=positions)
            for handle in handles:
                handle.remove()
        torch.save(means[1] - means[0], tmp_path / "mean_diffs.pt")

        offsets = Positions(offsets=(-3, -2, -1), labels=("a", "b", "c"))
        ours = np.zeros((len(sequences), 3, 3, 32))
        for batch in capture(model, sequences, positions=offsets):
            ours[batch.indices] = batch.values["resid_pre"]
        for layer, position in ((1, -1), (2, -3)):
            found = import_direction(tmp_path / "mean_diffs.pt", layer=layer, position=position)
            expected = mean_diff(ours[:, layer, position], labels)
            np.testing.assert_allclose(found.vector, expected, atol=1e-5)
            shifted = mean_diff(ours[:, layer - 1, position], labels)
            assert not np.allclose(found.vector, shifted, atol=1e-2)


def added_after(model, block, vector, ids):
    """Logits with a vector added to a block's output, by a plain hook."""

    def add(module, args, output):
        if isinstance(output, tuple):
            return (output[0] + vector, *output[1:])
        return output + vector

    handle = model.hf.model.layers[block].register_forward_hook(add)
    try:
        return model.hf(input_ids=ids).logits
    finally:
        handle.remove()


def added_by_us(model, direction, ids):
    """Logits under the addition that selection measures."""
    vector = torch.from_numpy(direction.vector).float()
    with intervene(model, Addition(vector, direction.site.layer)):
        return model.hf(input_ids=ids).logits


class TestControlVector:
    def read(self, content, tmp_path):
        (tmp_path / "d.gguf").write_bytes(content)
        return gguf.GGUFReader(tmp_path / "d.gguf")

    def test_is_what_llama_cpp_reads(self, plant, tmp_path):
        made = direction_at(plant()[0], Site(hook="resid_pre", layer=2, position=-1))
        reader = self.read(control_vector_bytes(made), tmp_path)
        contents = {name: field.contents() for name, field in reader.fields.items()}
        assert contents["general.architecture"] == "controlvector"
        assert contents["controlvector.model_hint"] == "llama"
        assert contents["controlvector.layer_count"] == 1
        (tensor,) = reader.tensors
        assert tensor.name == "direction.1"
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert list(tensor.shape) == [24]
        np.testing.assert_array_equal(tensor.data, made.vector.astype(np.float32))

    def test_added_to_that_blocks_output_it_is_our_addition(self, build, tmp_path):
        model, direction = build(), at(2)
        (tensor,) = self.read(control_vector_bytes(direction), tmp_path).tensors
        block, ids = int(tensor.name.split(".")[1]), torch.tensor([[3, 40, 41, 42]])
        theirs = added_after(model, block, torch.from_numpy(tensor.data.copy()), ids)
        ours = added_by_us(model, direction, ids)
        torch.testing.assert_close(theirs, ours)
        off_by_one = added_after(model, block - 1, torch.from_numpy(tensor.data.copy()), ids)
        assert not torch.allclose(off_by_one, ours, atol=1e-2)

    def test_resid_post_is_the_same_place(self, tmp_path):
        later = self.read(control_vector_bytes(at(2)), tmp_path).tensors[0].name
        assert self.read(control_vector_bytes(at(1, "resid_post")), tmp_path).tensors[0].name == (
            later
        )

    @pytest.mark.parametrize(
        "direction", [at(0), at(1), at(0, "resid_post"), at(2, "mlp_out"), at(2, "resid_mid")]
    )
    def test_refuses_where_llama_cpp_cannot_add(self, direction):
        with pytest.raises(DirectionError, match=r"layer 2 or later.*got"):
            control_vector_bytes(direction)


class TestSteeringVector:
    def load(self, direction, tmp_path):
        (tmp_path / "d.pt").write_bytes(steering_vector_bytes(direction))
        return torch.load(tmp_path / "d.pt", weights_only=True)

    def test_holds_the_arguments(self, tmp_path):
        content = self.load(at(1), tmp_path)
        assert set(content) == {"layer_activations", "layer_type"}
        assert content["layer_type"] == "decoder_block"
        ((block, vector),) = content["layer_activations"].items()
        assert (block, vector.dtype) == (0, torch.float32)
        np.testing.assert_array_equal(vector.numpy(), VECTOR.astype(np.float32))

    def test_added_to_that_blocks_output_it_is_our_addition(self, build, tmp_path):
        model, ids = build(), torch.tensor([[3, 40, 41, 42]])
        ((block, vector),) = self.load(at(1), tmp_path)["layer_activations"].items()
        torch.testing.assert_close(
            added_after(model, block, vector, ids), added_by_us(model, at(1), ids)
        )

    def test_the_package_loads_it(self, build, tmp_path):
        package = pytest.importorskip("steering_vectors")
        model, ids = build(), torch.tensor([[3, 40, 41, 42]])
        clean = model.hf(input_ids=ids).logits
        vector = package.SteeringVector(**self.load(at(2), tmp_path))
        with vector.apply(model.hf):
            theirs = model.hf(input_ids=ids).logits
        torch.testing.assert_close(theirs, added_by_us(model, at(2), ids))
        with vector.apply(model.hf, multiplier=0.0):
            torch.testing.assert_close(model.hf(input_ids=ids).logits, clean)

    @pytest.mark.parametrize("direction", [at(0), at(1, "attn_out")])
    def test_refuses_where_it_cannot_add(self, direction):
        with pytest.raises(DirectionError, match="layer 1 or later"):
            steering_vector_bytes(direction)


def test_every_format_has_a_writer():
    assert EXPORTS == {"gguf": control_vector_bytes, "steering-vectors": steering_vector_bytes}
