import os
import stat

import pytest

from refusaldir.errors import OutputExistsError, StoreError
from refusaldir.report.files import write_atomic


def test_it_writes_and_makes_folders(tmp_path):
    path = write_atomic(tmp_path / "a" / "b.json", b"{}")
    assert path.read_bytes() == b"{}"
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = write_atomic(tmp_path / "x", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_an_existing_file_is_kept_unless_forced(tmp_path):
    path = write_atomic(tmp_path / "x", b"old")
    with pytest.raises(OutputExistsError, match="--force"):
        write_atomic(path, b"new", force=False)
    assert path.read_bytes() == b"old"
    assert write_atomic(path, b"new").read_bytes() == b"new"


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "x", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refusaldir.report.files.os.fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    write_atomic(tmp_path / "file", b"")
    with pytest.raises(StoreError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "below", b"")
