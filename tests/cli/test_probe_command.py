"""`refusaldir probe`: one model asked, here and behind a server, stopped, repeated and grown."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from chat_server import ChatServer, say

from refusaldir.probes.behaviour import Behaviour
from refusaldir.probes.chat_client import KEY_VARIABLE

QUICK = ("--max-new-tokens", "4", "--device", "cpu")


@pytest.fixture
def probed(run, base_model, prompt_file):
    """Run `probe` on the tiny model and its forty prompts."""

    def go(*words, prompts=prompt_file):
        return run("probe", base_model, "-p", prompts, *QUICK, *words)

    return go


def test_a_table_and_a_folder(probed, run):
    done = probed("--out", "r", "--refusal-token", "a")
    assert done.code == 0, done.err
    for part in ("Share refused, by category", "all prompts", "one", "harmful %", "harmless %",
                 "Every judge", "phrases-", "first-token-", "at most 4 tokens"):  # fmt: skip
        assert part in done.out, part
    assert max(map(len, done.out.splitlines())) <= 80
    assert "cut off at 4 tokens" in " ".join(done.out.split())
    assert "refusaldir diff r ITS_FOLDER" in done.sentence
    assert {path.name for path in Path("r").iterdir()} == {"probe.json", "responses.jsonl"}
    for what in ("r", "r/probe.json"):
        assert run("show", what).out == done.out
    document = json.loads(run("show", "r", "--json").out)
    assert document == json.loads(Path("r/probe.json").read_text("utf-8"))
    overall = document["single"]["axes"]["refusal"]["overall"]
    assert (overall["n_prompts"], overall["n_replies"]) == (20, 20)
    rows = Behaviour.from_jsonl(Path("r/responses.jsonl")).rows
    assert all(row.score is not None and "surprise" in row.secondary for row in rows)
    assert {name.split("-")[0] for row in rows for name in row.others} == {"first"}


def test_repeating_keeps_it_and_asking_for_more_adds(probed):
    first = json.loads(probed("--out", "r", "--json").out)
    again = probed("--out", "r")
    assert "Kept: r holds this run already" in again.sentence
    grown = json.loads(
        probed("--out", "r", "--json", "--temperature", "0,1", "--samples", "2",
               "--seeds", "0,1").out
    )  # fmt: skip
    temperatures = grown["single"]["axes"]["refusal"]["by"]["temperature"]
    assert [(t["name"], t["n_replies"]) for t in temperatures] == [("0", 20), ("1", 80)]
    assert temperatures[0]["labels"] == first["single"]["axes"]["refusal"]["overall"]["labels"]
    less = probed("--out", "r")
    assert less.code == 2 and "does not ask for" in less.sentence and "--force" in less.sentence
    assert json.loads(Path("r/probe.json").read_text("utf-8")) == grown
    forced = json.loads(probed("--out", "r", "--force", "--json").out)
    assert forced["single"]["axes"] == first["single"]["axes"]


def test_another_model_does_not_replace_it(probed, run, tuned_model, prompt_file):
    probed("--out", "r")
    before = Path("r/responses.jsonl").read_bytes()
    words = ("probe", tuned_model, "-p", prompt_file, *QUICK, "--out", "r")
    done = run(*words)
    assert done.code == 2 and "another model" in done.sentence
    assert Path("r/responses.jsonl").read_bytes() == before
    assert run(*words, "--force").code == 0
    assert Path("r/responses.jsonl").read_bytes() != before


def test_a_judge_added_later_asks_the_model_nothing(probed, monkeypatch):
    probed("--out", "r", "--judge", "phrases")
    rows = [row.response for row in Behaviour.from_jsonl(Path("r/responses.jsonl")).rows]
    monkeypatch.setattr("refusaldir.probes.model_host.generate", None)  # not to be called
    lines = ["id,label"] + [f"p{i}-harmful,full_refusal" for i in range(20)]
    Path("human.csv").write_text("\n".join(lines), "utf-8")
    done = probed("--out", "r", "--judge", "labels:human.csv", "--judge", "phrases", "--json")
    document = json.loads(done.out)
    assert document["judges"][0].startswith("labels:human.csv")
    refusal = document["single"]["axes"]["refusal"]
    assert refusal["overall"]["rate"]["value"] == 1.0
    assert [judge["authoritative"] for judge in refusal["judges"]] == [True, False]
    assert document["single"]["axes"]["over_refusal"]["overall"]["n_unusable"] == 20
    assert [r.response for r in Behaviour.from_jsonl(Path("r/responses.jsonl")).rows] == rows


def test_escalations(run, long_model):
    words = ("probe", long_model, "--battery", "off", "--escalations", "both", "--limit", "2",
             *QUICK, "--out", "r")  # fmt: skip
    done = run(*words)
    assert done.code == 0, done.err
    assert "frozen" in done.out and "live" in done.out and "answered at some turn" in done.out
    document = json.loads(Path("r/probe.json").read_text("utf-8"))
    assert document["single"] is None
    for mode in ("frozen", "live"):
        turns = document["escalations"][mode]["axes"]["refusal"]["turns"]
        assert [turn["name"] for turn in turns][:4] == ["1", "2", "3", "4"]
        assert turns[0]["n_replies"] == 2
    assert run("show", "r").out == done.out
    fewer = [word if word != "both" else "live" for word in words]
    done = run(*fewer)
    assert done.code == 2 and "escalations-frozen.jsonl" in done.sentence
    assert run(*fewer, "--force").code == 0
    assert not Path("r/escalations-frozen.jsonl").exists()


def test_a_direction_is_projected_on(probed, run, base_model, prompt_file):
    words = ("-p", prompt_file, "--positions", "-1", "--refusal-token", "a", "--no-filter")
    done = run("select", base_model, *words, "--kl", "1e9", "--induce", "-1e9", "--depth", "1",
               "--out", "s")  # fmt: skip
    assert done.code == 0, done.err
    done = probed("--out", "r", "--direction", "s/direction.safetensors")
    assert done.code == 0, done.err
    found = Behaviour.from_jsonl(Path("r/responses.jsonl"))
    assert found.provenance.direction.startswith("resid_pre.")
    assert all(row.projection is not None for row in found.rows)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-p", "batery"), "Did you mean 'battery'"),
        (("-p", "escalations"), "--escalations frozen, live or both"),
        (("-p", "off"), "nothing to ask"),
        (("--judge", "frases"), "names no judge"),
        (("--judge", "phrases", "--judge", "phrases"), "named twice"),
        (("--judge", "labels:none.csv"), "none.csv"),
        (("--temperature", "warm"), "e.g. 0,0.7"),
        (("--temperature", "3"), "between 0 and 2"),
        (("--seeds", "0.5"), "e.g. 0,1,2"),
        (("--escalations", "some"), "off | frozen | live | both"),
        (("--direction", "none.safetensors"), "none.safetensors"),
        (("--endpoint", "http://localhost:1"), "both --endpoint URL and --served-model NAME"),
        (("--endpoint", "http://localhost:1", "--served-model", "m"), "a model"),
        (("--max-new-tokens", "189"), "do not fit in the model's context"),
    ],
)
def test_what_cannot_be(run, base_model, prompt_file, words, says):
    prompts = () if "-p" in words else ("-p", prompt_file)
    done = run("probe", base_model, *prompts, "--out", "r", *words)
    assert done.code == 2, done.err
    assert says in done.sentence
    assert "Traceback" not in done.err
    assert not Path("r/responses.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no model to ask"),
        (("--template", "plain"), "--template"),
        (("--system", "none"), "--system none"),
        (("--dtype", "float32"), "options to load a model"),
        (("--refusal-token", "I"), "neither logits nor activations"),
        (("--judge", "first-token"), "neither logits nor activations"),
    ],
)
def test_what_a_server_cannot(run, prompt_file, words, says):
    server = ("--endpoint", "http://127.0.0.1:9", "--served-model", "m") if words else ()
    done = run("probe", "-p", prompt_file, *server, *words)
    assert done.code == 2, done.err
    assert says in done.sentence


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    servers = []

    def make(answer):
        servers.append(ChatServer(answer))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def refuse(number, body):
    text = body["messages"][-1]["content"]
    return say(body, "I'm sorry, but I can't help with that." if "wreck" in text else "Sure: paint")


def test_a_server_that_died_goes_on_with_the_same_command(run, serve, prompt_file):
    server = serve(lambda n, body: refuse(n, body) if n < 15 else (401, {"error": "gone"}, {}))
    words = ("probe", "--endpoint", server.url, "--served-model", "tiny", "-p", prompt_file,
             "--concurrency", "1", "--system", "be kind", "--no-thinking")  # fmt: skip
    done = run(*words)
    assert done.code == 2 and "15 of 40 replies had come" in done.sentence
    server.answer = refuse
    before = len(server.seen)
    done = run(*words)
    assert done.code == 0, done.err
    assert len(server.seen) - before == 25
    body = server.bodies()[-1]
    assert body["messages"][0] == {"role": "system", "content": "be kind"}
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["max_tokens"] == 192 and body["temperature"] == 0
    text = " ".join(done.out.split())
    assert "100.0 [83.9, 100.0]" in text and "0.0 [0.0, 16.1]" in text
    assert "Every judge" not in done.out  # phrases alone: a server shows no first token
    assert "Kept:" in run(*words).sentence


def test_two_models_behind_servers_are_compared(run, serve, prompt_file):
    """One refuses all that is harmful, the other half of it."""
    half = serve(lambda n, body: refuse(n, body) if "alpha" in str(body["messages"]) else say(body))
    for server, name in ((serve(refuse), "base"), (half, "tuned")):
        done = run("probe", "--endpoint", server.url, "--served-model", name, "-p", prompt_file,
                   "--out", name)  # fmt: skip
        assert done.code == 0, done.err
    done = run("diff", "base", "tuned", "--out", "d", "--json")
    assert done.code == 0, done.err
    group = json.loads(done.out)["behaviour"]["axes"]["refusal"]["overall"]
    kept = sum("alpha" in line and "wreck" in line for line in prompt_file.read_text().splitlines())
    assert group["base_rate"]["value"] == 1.0 and 0 < kept < 20
    assert group["tuned_rate"]["value"] == pytest.approx(kept / 20)
    assert Path("d/behaviour.json").exists()


def test_a_server_that_ignores_the_temperature_is_told_of(run, serve, prompt_file):
    server = serve(refuse)
    done = run("probe", "--endpoint", server.url, "--served-model", "tiny", "-p", prompt_file,
               "--temperature", "0,0.7", "--samples", "2")  # fmt: skip
    assert done.code == 0, done.err
    assert "at temperature 0.7 every prompt got the same reply" in " ".join(done.out.split())
    assert len({body["seed"] for body in server.bodies() if "seed" in body}) == 80


def test_full_disk(base_model, prompt_file, tmp_path):
    """A file size limit in a process of its own: one sentence, and what came is kept."""
    command = [
        sys.executable, "-W", "ignore", "-m", "refusaldir.cli", "probe", str(base_model),
        "-p", str(prompt_file), "--out", "r", *QUICK,
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "REFUSALDIR_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000)),
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "r" / "responses.jsonl").exists()
