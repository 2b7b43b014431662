import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from refusaldir.errors import OutputExistsError, PromptError, StoreError
from refusaldir.prompts.schema import PromptSet
from refusaldir.store import Capture, CaptureWriter
from refusaldir.store.lock import FileLock


def interrupt(case, path: Path, rows=(4, 0, 7), **options) -> Path:
    with pytest.raises(KeyboardInterrupt):
        with case.writer(path, **options) as writer:
            writer.write(np.array(rows), case.batch(np.array(rows)))
            raise KeyboardInterrupt
    return path.with_name(path.name + ".partial")


def same_content(a: Path, b: Path) -> bool:
    """Compare every dataset of two files bit for bit."""
    with h5py.File(a) as left, h5py.File(b) as right:
        names: list[str] = []
        left.visit(names.append)
        others: list[str] = []
        right.visit(others.append)
        if names != others:
            return False
        pairs = [(left[n], right[n]) for n in names if isinstance(left[n], h5py.Dataset)]
        return all(np.asarray(x[...] == y[...]).all() for x, y in pairs)


def test_resume_keeps_what_is_done_and_ends_equal(case, stored, tmp_path):
    path = tmp_path / "d.h5"
    partial = interrupt(case, path)
    assert partial.exists() and not path.exists()
    with case.writer(path, resume=True) as writer:
        assert writer.done == {0, 4, 7}
        rest = np.array([i for i in range(10) if i not in writer.done])
        writer.write(rest, case.batch(rest))
        assert writer.finish() == path
    assert same_content(path, stored)
    assert not partial.exists()


def test_same_content_can_tell(case, stored, tmp_path):
    values = case.values["resid_pre"].copy()
    values[9, 2, 2, 7] += 1e-3
    other = case.with_values("resid_pre", values).write(tmp_path / "o.h5")
    assert not same_content(stored, other)


def test_resume_without_a_partial_begins(case, tmp_path):
    case.write(tmp_path / "c.h5", resume=True)


def test_partial_without_resume_or_force_is_refused(case, tmp_path):
    interrupt(case, tmp_path / "c.h5")
    with pytest.raises(OutputExistsError, match=r"--resume.*--force"):
        case.writer(tmp_path / "c.h5")
    with case.writer(tmp_path / "c.h5", force=True) as writer:
        assert writer.done == frozenset()


def test_existing_output_is_refused_and_force_replaces_it_only_at_the_end(case, stored):
    for resume in (False, True):
        with pytest.raises(OutputExistsError, match="--force"):
            case.writer(stored, resume=resume)
    before = stored.read_bytes()
    interrupt(case, stored, force=True)
    assert stored.read_bytes() == before
    values = case.values["mlp_out"] + 1
    changed = case.with_values("mlp_out", values)
    changed.write(stored, force=True)
    with Capture.open(stored) as capture:
        np.testing.assert_array_equal(capture.read("mlp_out", layer=1), values[:, 0])


def test_output_that_appears_meanwhile_is_not_overwritten(case, tmp_path):
    path = tmp_path / "c.h5"
    with case.writer(path) as writer:
        writer.write(range(10), case.values)
        path.write_bytes(b"someone else's")
        with pytest.raises(OutputExistsError, match="appeared"):
            writer.finish()
    assert path.read_bytes() == b"someone else's"


def changed_model(case):
    model = replace(case.provenance.model, weights_hash="w1", name="renamed")
    return replace(case, provenance=replace(case.provenance, model=model))


def changed_template(case):
    template = replace(case.provenance.template, system="none")
    return replace(case, provenance=replace(case.provenance, template=template))


def changed_metadata(case):
    prompts = tuple(replace(p, licence="other") for p in case.prompts)
    return replace(case, prompts=PromptSet(case.prompts.name, prompts, case.prompts.notes))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed_model, r"model\.weights_hash 'w0' → 'w1'\. "),
        (changed_template, r"template\.system 'default' → 'none'"),
        (changed_metadata, r"prompts/licence"),
    ],
)
def test_resume_refuses_another_capture_and_says_in_what(case, tmp_path, change, named):
    partial = interrupt(case, tmp_path / "c.h5")
    before = partial.read_bytes()
    with pytest.raises(StoreError, match=f"something else.*{named}.*--force"):
        change(case).writer(tmp_path / "c.h5", resume=True)
    assert partial.read_bytes() == before


def test_resume_refuses_other_shapes_and_dtypes(case, new_case, tmp_path):
    interrupt(case, tmp_path / "c.h5")
    with pytest.raises(StoreError, match=r"layers.*positions.*hooks|hooks.*layers.*positions"):
        other = new_case(10, layers=(1, 4), offsets=(-1,), hooks=("mlp_out",))
        other.writer(tmp_path / "c.h5", resume=True)
    with pytest.raises(StoreError, match="prompts_hash"):
        new_case(12).writer(tmp_path / "c.h5", resume=True)
    with pytest.raises(StoreError, match=r"float32.*bfloat16"):
        case.writer(tmp_path / "c.h5", resume=True, storage_dtype="bfloat16")
    with pytest.raises(StoreError, match="n_tokens"):
        case.writer(tmp_path / "c.h5", resume=True, lengths=[99] * 10)


def test_resume_ignores_what_does_not_decide_the_values(case, tmp_path):
    interrupt(case, tmp_path / "c.h5")
    model = replace(case.provenance.model, spec="/elsewhere/tiny", name="alias")
    provenance = replace(case.provenance, model=model, created="2026", versions={"torch": "3"})
    with replace(case, provenance=provenance).writer(tmp_path / "c.h5", resume=True) as writer:
        assert writer.done == {0, 4, 7}


def test_resume_refuses_a_truncated_partial(case, tmp_path):
    partial = interrupt(case, tmp_path / "c.h5")
    partial.write_bytes(partial.read_bytes()[:-100])
    with pytest.raises(StoreError, match="--force"):
        case.writer(tmp_path / "c.h5", resume=True)
    with case.writer(tmp_path / "c.h5", force=True):
        pass


def test_prompts_whose_values_were_lost_in_a_power_cut_are_done_again(case, stored, tmp_path):
    """The mark reached the disk, some of the values did not: zeros are in their place."""
    path = tmp_path / "d.h5"
    partial = interrupt(case, path)
    with h5py.File(partial, "r+") as file:
        file["mlp_out"][7, 2] = 0
    with case.writer(path, resume=True) as writer:
        assert writer.done == {0, 4}
    case.write(path, resume=True)
    assert same_content(path, stored)


def test_kept_error_message_tells_how_far_it_got(case, tmp_path):
    partial = interrupt(case, tmp_path / "c.h5")
    with pytest.raises(StoreError, match=r"expected 10 prompts, got 3.*--resume"):
        Capture.open(partial)


def test_finishing_too_early_is_refused(case, tmp_path):
    with case.writer(tmp_path / "c.h5") as writer:
        writer.write([0, 2], case.batch([0, 2]))
        with pytest.raises(StoreError, match=r"expected 10 prompts, got 2 .*|'p1'"):
            writer.finish()
    assert not (tmp_path / "c.h5").exists()


def test_wrong_batches_are_refused(case, tmp_path):
    with case.writer(tmp_path / "c.h5") as writer:
        for rows in ([0, 0], [10], [-1], []):
            with pytest.raises(StoreError, match="indices"):
                writer.write(rows, case.batch([0] * len(rows)))
        with pytest.raises(StoreError, match=r"hook points.*resid_pre, mlp_out.*got mlp_out"):
            writer.write([0], {"mlp_out": case.values["mlp_out"][:1]})
        with pytest.raises(StoreError, match=r"shape.*\(2, 3, 3, 8\).*got \(3, 3, 3, 8\)"):
            writer.write([0, 1], case.batch([0, 1, 2]))
        writer.write([3], case.batch([3]))
        with pytest.raises(StoreError, match=r"twice.*'p3'"):
            writer.write([2, 3], case.batch([2, 3]))
        assert writer.done == {3}


def test_a_capture_needs_both_classes_and_its_own_provenance(case, tmp_path):
    harmful = case.prompts.select(label="harmful")
    with pytest.raises(PromptError, match="both classes"):
        case.writer(tmp_path / "c.h5", prompts=harmful, lengths=[1] * 5)
    with pytest.raises(StoreError, match="provenance"):
        case.writer(tmp_path / "c.h5", prompts=case.prompts[:8], lengths=[1] * 8)
    with pytest.raises(StoreError, match="provenance"):
        case.writer(tmp_path / "c.h5", d_model=9)
    for wrong in ({"layers": (4, 1)}, {"layers": (1, 1)}, {"hooks": ("mlp_out", "mlp_out")}):
        provenance = replace(case.provenance, **wrong)
        with pytest.raises(StoreError, match="cannot label"):
            case.writer(tmp_path / "c.h5", provenance=provenance)
    with pytest.raises(StoreError, match="token count"):
        case.writer(tmp_path / "c.h5", lengths=[1] * 9)
    with pytest.raises(StoreError, match="float32 or bfloat16, got float16"):
        case.writer(tmp_path / "c.h5", storage_dtype="float16")
    assert not list(tmp_path.iterdir())


def test_two_writers_at_once(case, tmp_path):
    with case.writer(tmp_path / "c.h5"):
        for options in ({}, {"resume": True}, {"force": True}):
            with pytest.raises(StoreError, match="Another writer"):
                case.writer(tmp_path / "c.h5", **options)
    with case.writer(tmp_path / "c.h5", resume=True):
        pass


def test_two_processes_at_once(case, tmp_path, child_env):
    code = (
        "import sys\n"
        "from conftest import make_case\n"
        "from refusaldir.errors import StoreError\n"
        "try:\n"
        "    make_case().writer(sys.argv[1], force=True)\n"
        "except StoreError as error:\n"
        "    print(error)\n"
    )
    with case.writer(tmp_path / "c.h5"):
        run = [sys.executable, "-c", code, str(tmp_path / "c.h5")]
        done = subprocess.run(run, env=child_env, capture_output=True, text=True, check=True)
    assert "Another writer has this capture open" in done.stdout


def test_a_stale_lock_file_is_taken_over(case, tmp_path):
    (tmp_path / "c.h5.lock").write_text("12345")
    case.write(tmp_path / "c.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["c.h5"]


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path, monkeypatch):
    path = tmp_path / "x.lock"
    first = FileLock(path)
    flock = FileLock._flock

    def slow(self, fd):
        first.release()  # The holder leaves, and removes the file, between open and flock.
        flock(self, fd)

    monkeypatch.setattr(FileLock, "_flock", slow)
    second = FileLock(path)
    assert path.exists()
    second.release()
    second.release()
    assert not path.exists()


def test_a_failed_create_leaves_nothing_behind(case, tmp_path, monkeypatch):
    import refusaldir.store.partial as partial_module

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(partial_module, "create_skeleton", fail)
    with pytest.raises(StoreError, match="No space left"):
        case.writer(tmp_path / "sub" / "c.h5")
    assert not list((tmp_path / "sub").iterdir())


def test_synced_before_each_renaming(case, tmp_path, monkeypatch):
    """A power cut must not leave a name whose content is not on the disk."""
    events = []
    replace_path = Path.replace

    def fsync(fd):
        kind = "folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"
        events.append(kind)

    def renamed(self, target):
        events.append(f"{self.name} → {target.name}")
        return replace_path(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    case.write(tmp_path / "c.h5")
    assert events == [
        "file",
        "c.h5.partial.tmp → c.h5.partial",
        "file",
        "c.h5.partial → c.h5",
        "folder",
    ]


def test_unwritable_places_are_reported(case, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        case.writer(tmp_path / "file" / "c.h5")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="folder"):
        case.writer(tmp_path / "folder")


def test_create_is_not_the_constructor(case):
    assert callable(CaptureWriter.create)


# --- kill -9 -------------------------------------------------------------------------------------


def kill_many_times(folder: Path, env, *, kills: int, seed: int) -> dict:
    run = [sys.executable, str(Path(__file__).with_name("kill_worker.py"))]
    run += [str(folder), str(kills), str(seed)]
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(tmp_path, child_env, seed):
    report = kill_many_times(tmp_path, child_env, kills=25, seed=seed)
    assert same_content(tmp_path / "killed.h5", tmp_path / "whole.h5")
    assert report["killed"] >= 10  # Else the test has not tested much.
    assert report["lost_prompts"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.h5", "whole.h5"]


@pytest.mark.slow
def test_killed_at_very_many_random_moments(tmp_path, child_env):
    for seed in range(2, 12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        kill_many_times(folder, child_env, kills=200, seed=seed)
        assert same_content(folder / "killed.h5", folder / "whole.h5")
