"""The Python API: what the command line calls, and what only a program can ask."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import refusaldir as rd
from refusaldir.errors import OutputExistsError, StoreError


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_api_mirrors_the_commands(base_model, tuned_model, prompt_file):
    base = rd.extract(str(base_model), prompts=prompt_file, positions="-1")
    assert base.path.parent.name == "activations"
    with rd.Capture.open(base.path) as capture:
        assert capture.provenance.model.backend == "transformer_lens"
    seen = []
    result = rd.diff(
        base.path,
        str(tuned_model),
        behaviour="on",
        max_new_tokens=3,
        refusal_tokens=["a"],
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    assert result.behaviour is not None
    assert result.document["drift"] is not None
    assert all(path.exists() for path in result.files.values())
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    judged = [f"Judge {arm} by {judge}" for arm in ("base", "tuned")
              for judge in ("phrases", "first-token")]  # fmt: skip
    assert stages == ["Respond base", "Read replies of base", "Capture tuned", "Respond tuned",
                      "Read replies of tuned", *judged, "Compare layers"]  # fmt: skip
    for stage in stages:
        counts = [(done, total) for name, done, total in seen if name == stage]
        assert counts[-1][0] == counts[-1][1]
        assert sorted(counts) == counts


def test_diff_reuses_the_captures_of_the_store(base_model, tuned_model, prompt_file):
    rd.diff(str(base_model), str(tuned_model), prompts=prompt_file, behaviour="off", out="one")
    times = {path: path.stat().st_mtime_ns for path in Path("activations").glob("*.h5")}
    assert len(times) == 2
    rd.diff(str(base_model), str(tuned_model), prompts=prompt_file, behaviour="off", out="two")
    assert {p: p.stat().st_mtime_ns for p in Path("activations").glob("*.h5")} == times


def test_one_model_in_memory_at_a_time(base_model, tuned_model, prompt_file, monkeypatch):
    import weakref

    from refusaldir.models import bridge

    alive: list[weakref.ref] = []
    most = 0
    real = bridge.open_model

    def counting(*args, **kwargs):
        nonlocal most
        opened = real(*args, **kwargs)
        alive.append(weakref.ref(opened.hf))
        most = max(most, sum(ref() is not None for ref in alive))
        return opened

    monkeypatch.setattr(bridge, "open_model", counting)
    rd.diff(
        str(base_model),
        str(tuned_model),
        prompts=prompt_file,
        max_new_tokens=2,
        refusal_tokens=["a"],
    )
    assert len(alive) == 3  # base, tuned, and base again, to read tuned's replies
    assert most == 1


def test_a_changed_model_is_not_taken_for_the_captured_one(make_model, base_model, prompt_file):
    model = make_model(like=base_model)
    base = rd.extract(str(model), prompts=prompt_file)
    tuned = rd.extract(str(base_model), prompts=prompt_file, out="t.h5", system="none", force=True)
    other = make_model(seed=3, like=base_model, change=0.2)
    for file in ("model.safetensors",):
        (model / file).write_bytes((other / file).read_bytes())
    with pytest.raises(rd.RefusaldirError, match="changed since"):
        rd.diff(base.path, base.path, behaviour="on", max_new_tokens=2, refusal_tokens=["a"])
    assert tuned.path.exists()


def test_resume_needs_to_be_asked_for(base_model, prompt_file, monkeypatch):
    from refusaldir import capture

    real = capture.capture

    def interrupted(*args, **kwargs):
        batches = real(*args, **{**kwargs, "batch_size": 4})
        yield next(batches)
        yield next(batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(capture, "capture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rd.extract(str(base_model), prompts=prompt_file, out="x.h5")
    assert not Path("x.h5").exists()
    ran: list[int] = []

    def counted(*args, **kwargs):
        for batch in real(*args, **kwargs):
            ran.extend(batch.indices.tolist())
            yield batch

    monkeypatch.setattr(capture, "capture", counted)
    with pytest.raises((OutputExistsError, StoreError), match="resume"):
        rd.extract(str(base_model), prompts=prompt_file, out="x.h5")
    rd.extract(str(base_model), prompts=prompt_file, out="x.h5", resume=True)
    assert len(ran) == 40 - 8
    whole = rd.extract(str(base_model), prompts=prompt_file, out="y.h5")
    with rd.Capture.open("x.h5") as one, rd.Capture.open(whole.path) as two:
        for layer in one.layers:
            a, b = one.read("resid_pre", layer=layer), two.read("resid_pre", layer=layer)
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_kill_9_loses_at_most_one_batch(base_model, prompt_file, tmp_path):
    """Killed again and again at random moments, the run still ends with the same values."""
    code = (
        "import sys, time, refusaldir as rd\n"
        "rd.extract(sys.argv[1], prompts=sys.argv[2], out='x.h5', resume=True, batch_size=2,\n"
        "           progress=lambda s, d, t: (print(d, flush=True), time.sleep(0.05)))\n"
    )
    command = [sys.executable, "-c", code, str(base_model), str(prompt_file)]
    rng = random.Random(0)
    starts = [0]
    for _ in range(40):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, env=os.environ)
        assert process.stdout is not None
        first = process.stdout.readline()
        if first:
            starts.append(int(first))
        time.sleep(rng.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        with process:  # closes its pipe
            rest = process.stdout.read().split()
        reported = int(rest[-1]) if rest else starts[-1]
        if (tmp_path / "x.h5").exists():
            break
        assert starts[-1] >= starts[-2]
        # What had been reported as done is there next time.
        again = subprocess.run(
            [sys.executable, "-c", code.replace("(print(d", "(sys.exit(print(d)), print(d"),
             *command[3:]],
            cwd=tmp_path, capture_output=True, text=True, env=os.environ,
        )  # fmt: skip
        assert int(again.stdout.split()[0]) >= reported
    assert (tmp_path / "x.h5").exists()
    rd.extract(str(base_model), prompts=prompt_file, out="whole.h5")
    with rd.Capture.open("x.h5") as one, rd.Capture.open("whole.h5") as two:
        for layer in one.layers:
            a, b = one.read("resid_pre", layer=layer), two.read("resid_pre", layer=layer)
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_prompts(base_model, tmp_path):
    """Peak memory of 10,000 prompts against 1,000: the activations alone would be 9 times more.

    Every hook is captured, so that activations outweigh what is kept of the prompts themselves.
    """
    code = (
        "import sys, json, resource, refusaldir as rd\n"
        "n = int(sys.argv[2])\n"
        "rows = [{'prompt': f'Do {v} thing {i}', 'label': y}\n"
        "        for i in range(n // 2) for v, y in (('bad', 'harmful'), ('good', 'harmless'))]\n"
        "open('p.jsonl', 'w').write('\\n'.join(map(json.dumps, rows)))\n"
        "from refusaldir.records import HOOKS\n"
        "rd.extract(sys.argv[1], prompts='p.jsonl', hooks=HOOKS, out='x.h5', force=True)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    peaks = {}
    for count in (1_000, 10_000):
        run = subprocess.run(
            [sys.executable, "-c", code, str(base_model), str(count)],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks[count] = float(run.stdout.split()[-1])
    size = (tmp_path / "x.h5").stat().st_size / 2**20
    assert size > 250
    assert peaks[10_000] - peaks[1_000] < 0.5 * size
