"""Write a capture in children that are killed at random moments; a helper of test_resume.

Usage: kill_worker.py FOLDER KILLS SEED. Children are forked, so that each starts within
milliseconds. Prints a JSON report.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
from conftest import make_case

from refusaldir.errors import StoreError
from refusaldir.store import Capture, CaptureWriter


def write(case, path: Path, *, resume: bool) -> None:
    with case.writer(path, resume=resume) as writer:
        order = np.random.default_rng(os.getpid()).permutation(len(case.prompts))
        todo = [int(i) for i in order if i not in writer.done]
        for start in range(0, len(todo), 3):
            rows = np.array(todo[start : start + 3])
            writer.write(rows, case.batch(rows))
        writer.finish()


def done_prompts(case, path: Path) -> frozenset:
    """What a resumed writer would keep; fails if it cannot be resumed."""
    with case.writer(path, resume=True) as writer:
        assert isinstance(writer, CaptureWriter)
        return writer.done


def whole(path: Path) -> bool:
    try:
        Capture.open(path).close()
    except StoreError:
        return False
    return True


def main(folder: Path, kills: int, seed: int) -> None:
    os.fsync = lambda fd: None  # A kill does not lose what the system already has.
    rng = random.Random(seed)
    case = make_case(60, layers=tuple(range(6)), offsets=(-3, -2, -1), d_model=96)
    began = time.monotonic()
    write(case, folder / "whole.h5", resume=False)
    duration = time.monotonic() - began
    path = folder / "killed.h5"
    partial = folder / "killed.h5.partial"
    report = {"killed": 0, "finished": 0, "lost_prompts": 0, "kept": []}
    kept: frozenset = frozenset()
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            try:
                write(case, path, resume=True)
            except BaseException as error:
                os.write(2, f"child: {error!r}\n".encode())
                os._exit(3)
            os._exit(0)
        time.sleep(rng.random() * duration * rng.choice([0.1, 0.4, 1.2]))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            report["killed"] += 1
        elif os.WEXITSTATUS(status):
            sys.exit("a child failed")
        if path.exists():
            # Under its own name a file is always whole; start over, to be killed again.
            Capture.open(path).close()
            report["finished"] += 1
            path.unlink()
            kept = frozenset()
        elif partial.exists():
            now = done_prompts(case, path)
            report["lost_prompts"] += len(kept - now)
            report["kept"].append(len(now))
            kept = now
            if whole(partial):  # Killed between the last write and the renaming.
                assert len(now) == len(case.prompts)
    write(case, path, resume=True)
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
