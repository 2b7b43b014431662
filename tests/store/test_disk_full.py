"""A full disk: told before the work begins, and survived when it fills up in the middle."""

import ctypes
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from refusaldir.errors import StoreError
from refusaldir.store import Capture
from refusaldir.store import image as image_module
from refusaldir.store import skeleton as skeleton_module

Usage = namedtuple("Usage", "total used free")


def test_too_little_space_is_told_before_the_work(case, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(StoreError, match=r"expected 1\.\d+ MB free, got 5 kB.*--store"):
        case.writer(tmp_path / "c.h5")
    assert not list(tmp_path.iterdir())


def test_the_estimate_covers_the_file_and_not_much_more(new_case, tmp_path):
    case = new_case(200, d_model=256, layers=tuple(range(8)))
    with case.writer(tmp_path / "c.h5") as writer:
        size = writer.partial.stat().st_size
        header, columns = writer._header, skeleton_columns(case)
    assert size <= skeleton_module.required_bytes(header, columns) < 1.3 * size


def skeleton_columns(case):
    from refusaldir.store.columns import prompt_columns

    return prompt_columns(case.prompts, case.lengths)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_the_space_is_really_reserved(new_case, tmp_path):
    case = new_case(200, d_model=256)
    with case.writer(tmp_path / "c.h5") as writer:
        stat = writer.partial.stat()
        assert stat.st_blocks * 512 >= stat.st_size


CHILD = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from conftest import make_case
from refusaldir.errors import StoreError

case, path = make_case(60, d_model=64), Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = int(sys.argv[2])
if size:  # The limit is there from the beginning.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    with case.writer(path, resume=True) as writer:
        written = 0
        for start in range(0, 60, 4):
            if not size and start == 20:
                limit = writer.partial.stat().st_size // 3
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            rows = np.arange(start, start + 4)
            writer.write(rows, case.batch(rows))
            written = start + 4
except StoreError as error:
    print(error)
    sys.exit(0)
sys.exit("no error")
"""


def limited(path, env, size=0):
    run = [sys.executable, "-c", CHILD, str(path), str(size)]
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # Nothing from HDF5 at exit.
    return done.stdout


def test_a_write_that_fails_in_the_middle_can_be_resumed(new_case, tmp_path, child_env):
    case, path = new_case(60, d_model=64), tmp_path / "c.h5"
    message = limited(path, child_env)
    assert "File too large" in message
    assert "20 of 60 prompts are safe" in message and "--resume" in message
    with case.writer(path, resume=True) as writer:
        assert writer.done == set(range(20))
    case.write(path, resume=True)
    with Capture.open(path) as capture:
        for hook, values in case.values.items():
            assert (capture.read(hook, layer=5) == values[:, 2]).all()


@pytest.mark.parametrize("size", [0x400, 0x4000, 0x20000])
def test_a_file_that_cannot_be_made_leaves_nothing(tmp_path, child_env, size):
    message = limited(tmp_path / "c.h5", child_env, size)
    assert "File too large" in message or "cannot be written" in message
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, if this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=4m"):
        pytest.skip(f"cannot mount a tmpfs: {os.strerror(ctypes.get_errno())}")
    yield folder
    libc.umount2(bytes(folder), 2)


def test_a_disk_that_is_too_small(new_case, small_disk, monkeypatch):
    case = new_case(60, d_model=2048)
    with pytest.raises(StoreError, match="too little disk space"):
        case.writer(small_disk / "c.h5")
    assert not list(small_disk.iterdir())
    # Had the check been wrong (quota, another program), reserving the space finds out.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))
    with pytest.raises(StoreError, match="No space left on device"):
        case.writer(small_disk / "c.h5")
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_where_space_cannot_be_reserved(new_case, small_disk, monkeypatch):
    """As on file systems that copy on write."""
    case, path = new_case(60, d_model=512), small_disk / "c.h5"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))
    monkeypatch.setattr(image_module, "_reserve", lambda fd, size: None)
    hog = small_disk / "hog"
    hog.write_bytes(bytes(3_000_000))
    with pytest.raises(StoreError, match=r"No space left on device.*prompts are safe.*--resume"):
        case.write(path)
    assert (small_disk / "c.h5.partial").exists()
    hog.unlink()
    with case.writer(path, resume=True) as writer:
        assert 0 < len(writer.done) < 60
    case.write(path, resume=True)
    with Capture.open(path) as capture:
        for hook, values in case.values.items():
            assert (capture.read(hook, layer=1) == values[:, 0]).all()
