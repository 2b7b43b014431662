import os
import random
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest

from refusaldir.errors import CaptureError, StoreError
from refusaldir.store import Capture, peek, summary
from refusaldir.store.encoding import checksums


def read_everything(path):
    with Capture.open(path) as capture:
        for hook in capture.hooks:
            for layer in capture.layers:
                capture.read(hook, layer=layer)
            capture.mean_diff(hook)
        return capture.prompts, capture.labels, capture.lengths


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def refused(path, match):
    with pytest.raises(StoreError, match=match) as caught:
        read_everything(path)
    assert str(path) in str(caught.value)


def test_nothing_is_refused_without_cause(stored):
    read_everything(stored)


def test_missing_folder_and_special_files(tmp_path):
    for reader in (Capture.open, peek, summary):
        with pytest.raises(StoreError, match=r"does not exist.*refusaldir extract"):
            reader(tmp_path / "none.h5")
        with pytest.raises(StoreError, match="regular file"):
            reader(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "c.h5", "Not a directory")
    refused(tmp_path / "fifo", "regular file")  # Opening it would wait for ever.


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"hello" * 100, bytes(4096)])
def test_not_hdf5(tmp_path, content):
    (tmp_path / "x.h5").write_bytes(content)
    refused(tmp_path / "x.h5", "not a capture|cannot be read")


def test_foreign_hdf5(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["resid_pre"] = np.zeros((2, 2, 2, 2), dtype=np.float32)
    refused(tmp_path / "x.h5", "not a capture")
    for other in ("netcdf", 3, np.array(["refusaldir-capture"], dtype="S18"), np.float64(1)):
        with h5py.File(tmp_path / "x.h5", "r+") as file:
            file.attrs["format"] = other
        refused(tmp_path / "x.h5", "not a capture")


def test_newer_and_older_versions(stored):
    edit(stored, lambda f: f.attrs.modify("format_version", 2))
    refused(stored, "another version.*expected format version 1, got 2.*Update refusaldir")
    edit(stored, lambda f: f.attrs.modify("format_version", 0))
    refused(stored, "another version.*extract")


def test_incomplete(stored):
    edit(stored, lambda f: f.attrs.modify("complete", np.bool_(False)))
    for reader in (Capture.open, peek, summary):
        with pytest.raises(StoreError, match=r"incomplete.*--resume"):
            reader(stored)


@pytest.mark.parametrize("name", ["format_version", "provenance", "complete", "n_prompts", "dtype"])
def test_missing_or_odd_attributes(stored, name):
    edit(stored, lambda f: f.attrs.create(name, [1.5, 2.5]))
    refused(stored, f"attribute '{name}'")
    edit(stored, lambda f: f.attrs.__delitem__(name))
    refused(stored, f"attribute '{name}'")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "[" * 100_000,
        '{"model": 3}',
        b"\xff\xfe",
    ],
)
def test_odd_provenance(stored, text):
    data = text.encode() if isinstance(text, str) else text
    edit(stored, lambda f: f.attrs.create("provenance", np.bytes_(data or b" ")))
    refused(stored, "provenance|cannot be read")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"layers": [1, 4, 5]', '"layers": [1, 4, "5"]'),
        ('"layers": [1, 4, 5]', '"layers": [5, 4, 1]'),
        ('"layers": [1, 4, 5]', '"layers": [1, 4]'),
        ('"hooks": ["resid_pre", "mlp_out"]', '"hooks": ["resid_pre", "../mlp_out"]'),
        ('"hooks": ["resid_pre", "mlp_out"]', '"hooks": []'),
        ('"d_model": 8', '"d_model": 800000000000000'),
        ('"d_model": 8', '"d_model": -8'),
        ('"offsets": [-5, -2, -1]', '"offsets": [5, 2, 1]'),
    ],
)
def test_provenance_that_does_not_fit_the_data(stored, old, new):
    def change(file):
        text = file.attrs["provenance"].decode()
        assert old in text
        file.attrs["provenance"] = np.bytes_(text.replace(old, new).encode())

    edit(stored, change)
    refused(stored, "capture")


DATASETS = [
    "resid_pre",
    "mlp_out",
    "checksums/resid_pre",
    "directions/mean_diff/mlp_out",
    "directions/mean_harmless/mlp_out",
    "prompts/id",
    "prompts/label",
    "prompts/turns",
    "prompts/metadata",
    "prompts/n_tokens",
]


@pytest.mark.parametrize("name", DATASETS)
def test_datasets_that_are_missing_or_of_another_form(stored, name):
    good = stored.read_bytes()
    with h5py.File(stored) as file:
        old = file[name]
        shape, dtype, values = old.shape, old.dtype, old[...]
    variants = {
        "lacks": None,
        "shape": np.zeros((*shape[:-1], shape[-1] + 1), dtype=dtype),
        "dtype|text": np.zeros(shape, dtype="f8"),
        "dtype|text|cannot": np.full(shape, "x", dtype=object),
    }
    for match, other in variants.items():
        if match == "shape" and name in ("prompts/turns", "prompts/metadata"):
            continue  # Their length is free; the number of lines is checked instead.
        stored.write_bytes(good)

        def change(file, other=other):
            del file[name]
            if other is not None and other.dtype == object:
                file.create_dataset(name, data=other, dtype=h5py.string_dtype())
            elif other is not None:
                file[name] = other

        edit(stored, change)
        refused(stored, match)
    stored.write_bytes(good)
    edit(stored, lambda f: f.__delitem__(name) or f.create_group(name))
    refused(stored, f"no dataset '{name}'")
    del values


def test_a_group_in_place_of_the_parent(stored):
    def change(file):
        del file["prompts"]
        file["prompts"] = 3

    refused(edit(stored, change), "lacks 'prompts/id'")


def link_soft(file, name, other):
    file.move(name, "elsewhere")
    file[name] = h5py.SoftLink("/elsewhere")


def link_external(file, name, other):
    del file[name]
    file[name] = h5py.ExternalLink(str(other), name)


def keep_external(file, name, other):
    data = file[name][...]
    del file[name]
    raw = other.with_suffix(".raw")
    raw.write_bytes(data.tobytes())
    file.create_dataset(
        name, shape=data.shape, dtype=data.dtype, external=[(str(raw), 0, data.nbytes)]
    )


def make_virtual(file, name, other):
    data = file[name]
    layout = h5py.VirtualLayout(shape=data.shape, dtype=data.dtype)
    layout[...] = h5py.VirtualSource(str(other), name, shape=data.shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("name", ["resid_pre", "checksums/mlp_out", "prompts/n_tokens", "prompts"])
@pytest.mark.parametrize("redirect", [link_soft, link_external, keep_external, make_virtual])
def test_redirections_are_refused(case, stored, tmp_path, redirect, name):
    if name == "prompts" and redirect in (keep_external, make_virtual):
        pytest.skip("only datasets can be kept elsewhere")
    other = case.write(tmp_path / "other.h5")
    edit(stored, lambda f: redirect(f, name, other))
    with h5py.File(stored) as file:  # h5py alone follows it without a word.
        assert file[name] is not None
    refused(stored, "link in place|outside itself")


def test_dangling_links_are_refused(stored):
    edit(stored, lambda f: link_external(f, "resid_pre", "/nowhere/x.h5"))
    refused(stored, "link in place")


def test_datasets_that_declare_more_than_they_hold(stored):
    """A few bytes on disk must not make the reader allocate terabytes."""

    def change(file):
        n = 10**9
        for name in list(file["prompts"]):
            del file[f"prompts/{name}"]
            file.create_dataset(f"prompts/{name}", (n,), dtype="S100", chunks=(1000,))
        file.attrs["n_prompts"] = n
        for name, shape, kind in (
            ("resid_pre", (n, 3, 3, 8), "<f4"),
            ("mlp_out", (n, 3, 3, 8), "<f4"),
            ("checksums/resid_pre", (n, 3, 3), "<u4"),
            ("checksums/mlp_out", (n, 3, 3), "<u4"),
        ):
            del file[name]
            file.create_dataset(name, shape, dtype=kind, chunks=(1000, *shape[1:]))

    refused(edit(stored, change), "holds only part")


def test_a_recompressed_file_can_be_read(case, stored):
    def change(file):
        for hook in ("resid_pre", "mlp_out"):
            data = file[hook][...]
            del file[hook]
            file.create_dataset(hook, data=data, chunks=(5, 1, 3, 8), compression="gzip")

    with Capture.open(edit(stored, change)) as capture:
        np.testing.assert_array_equal(
            capture.read("resid_pre", layer=4), case.values["resid_pre"][:, 1]
        )


def test_truncated_at_any_length(stored):
    size = stored.stat().st_size
    rng = random.Random(0)
    lengths = {*range(0, 100), *range(size - 100, size)}
    lengths |= {rng.randrange(size) for _ in range(300)}
    for length in sorted(lengths, reverse=True):
        os.truncate(stored, length)
        with pytest.raises(StoreError):
            read_everything(stored)


def test_a_tail_of_zeros_never_gives_wrong_values(case, stored, tmp_path):
    """What a copy that ran out of space can leave: the right length, the end missing."""
    good = stored.read_bytes()
    cut = tmp_path / "cut.h5"
    refusals = 0
    for length in range(0, len(good), 443):
        cut.write_bytes(good[:length] + bytes(len(good) - length))
        try:
            with Capture.open(cut) as capture:
                for i, layer in enumerate(capture.layers):
                    for hook, values in case.values.items():
                        read = capture.read(hook, layer=layer)
                        np.testing.assert_array_equal(read, values[:, i])
        except StoreError:
            refusals += 1
    assert refusals > 50


def test_damaged_values_are_noticed_and_located(stored):
    def change(file):
        file["mlp_out"][6, 1, 2, 5] += 1

    edit(stored, change)
    with Capture.open(stored) as capture:
        capture.read("mlp_out", layer=1)
        capture.read("mlp_out", layer=4, position=-5)
        for position in (None, -1):
            with pytest.raises(StoreError, match=r"checksum.*'p6', mlp_out, layer 4, position -1"):
                capture.read("mlp_out", layer=4, position=position)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_values_that_are_not_finite_are_located(stored, bad):
    def change(file):
        file["mlp_out"][3, 2, 1, 0] = bad
        file["checksums/mlp_out"][...] = checksums(file["mlp_out"][...])

    edit(stored, change)
    with Capture.open(stored) as capture:
        for position in (None, -2):
            with pytest.raises(CaptureError, match="'p3', mlp_out, layer 5, position -2"):
                capture.read("mlp_out", layer=5, position=position)


def test_mean_diff_that_is_not_finite(stored):
    edit(stored, lambda f: f["directions/mean_diff/mlp_out"].__setitem__((0, 0, 0), np.nan))
    refused(stored, "mean_diff that is not finite")


def test_edited_prompts_are_noticed(stored):
    def relabel(file):
        labels = file["prompts/label"][...]
        labels[0], labels[1] = labels[1], labels[0]
        file["prompts/label"][...] = labels

    good = stored.read_bytes()
    refused(edit(stored, relabel), "not those that were captured")
    stored.write_bytes(good)
    edit(stored, lambda f: f["prompts/label"].__setitem__(0, b"evil"))
    with Capture.open(stored) as capture, pytest.raises(StoreError, match=r"label.*'evil'"):
        _ = capture.labels
    refused(stored, "prompts of the capture cannot be read")
    stored.write_bytes(good)
    edit(stored, lambda f: f["prompts/turns"].__setitem__(0, ord("x")))
    refused(stored, "prompts of the capture cannot be read")
    stored.write_bytes(good)
    edit(stored, lambda f: f["prompts/turns"].__setitem__(5, ord("\n")))
    refused(stored, "only part of 'prompts/turns'")


def test_a_file_without_permission(stored):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    stored.chmod(0)
    refused(stored, "Permission denied")


def test_a_closed_capture(stored):
    with Capture.open(stored) as capture:
        ids = capture.ids
    assert capture.ids == ids
    for use in (
        lambda: capture.read("resid_pre", layer=1),
        lambda: capture.mean_diff("resid_pre"),
        lambda: capture.prompts,
        lambda: capture.lengths,
    ):
        with pytest.raises(StoreError, match=r"closed.*Open it again"):
            use()


def test_reading_in_threads(case, stored):
    failures = []

    def work(capture, hook):
        for _ in range(20):
            for i, layer in enumerate(capture.layers):
                if not np.array_equal(capture.read(hook, layer=layer), case.values[hook][:, i]):
                    failures.append((hook, layer))

    with Capture.open(stored) as capture:
        threads = [threading.Thread(target=work, args=(capture, h)) for h in capture.hooks * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_importing_the_store_is_light(child_env):
    code = (
        "import sys, refusaldir.store; "
        "heavy = {'torch', 'transformers', 'transformer_lens', 'scipy', 'matplotlib'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=child_env, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_random_damage_never_crashes_hangs_or_changes_values(case, tmp_path, child_env):
    """In a child: a crash inside HDF5 would take the tests down with it."""
    code = """
import random, sys
from pathlib import Path
import numpy as np
from conftest import make_case
from refusaldir.errors import CaptureError, StoreError
from refusaldir.store import Capture, summary

folder, rng, case = Path(sys.argv[1]), random.Random(7), make_case()
good = case.write(folder / "good.h5").read_bytes()
bad, refused = folder / "bad.h5", 0
for _ in range(5000):
    data = bytearray(good)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        at, length = rng.randrange(len(data)), rng.choice([1, 1, 32])
        data[at : at + length] = rng.randbytes(len(data[at : at + length]))
    bad.write_bytes(data)
    try:
        with Capture.open(bad) as capture:
            for hook, values in case.values.items():
                for i, layer in enumerate(capture.layers):
                    assert np.array_equal(capture.read(hook, layer=layer), values[:, i])
        summary(bad)
    except (StoreError, CaptureError):
        refused += 1
assert 1000 < refused < 5000, refused
"""
    run = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(run, env=child_env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
