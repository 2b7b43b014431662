"""Replies from ``transformers serve`` are those of the same model in process."""

import os
import socket
import subprocess
import sys
import time

import httpx
import pytest

from refusaldir.errors import ProbeError
from refusaldir.models.bridge import open_model
from refusaldir.probes.chat_client import Patience
from refusaldir.probes.endpoint import ChatRequest, Endpoint, EndpointRespond, ask
from refusaldir.probes.escalation import play
from refusaldir.probes.in_process import InProcessRespond
from refusaldir.prompts.render import ChatRenderer
from refusaldir.prompts.schema import Prompt, PromptSet, Turn

pytestmark = pytest.mark.slow

ESCALATIONS = PromptSet(
    "two",
    tuple(
        Prompt(
            id=name,
            intent_id=name,
            label="harmful",
            turns=(
                Turn("user", f"How to {verb} it?"),
                Turn("assistant", "Which?"),
                Turn("user", f"The {name}."),
            ),
        )
        for name, verb in (("kettle", "paint"), ("hotel", "wreck"))
    ),
)


@pytest.fixture(scope="module")
def url(base_model, tmp_path_factory):
    """A server of the tiny model, in a process of its own, without the network."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(base_model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        try:
            address = f"http://127.0.0.1:{port}"
            with httpx.Client(trust_env=False) as client:
                for _ in range(600):
                    try:
                        client.get(f"{address}/health").raise_for_status()
                        break
                    except httpx.HTTPError:
                        assert server.poll() is None, log.read_text(errors="replace")[-2000:]
                        time.sleep(0.2)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def endpoint(url, model, **fields):
    patience = Patience(timeout=60.0, retries=1, first_wait=0.1)
    return Endpoint(url=url, model=str(model), patience=patience, concurrency=2, **fields)


@pytest.mark.parametrize("mode", ["frozen", "live"])
def test_escalations_are_those_of_the_model_in_process(url, base_model, mode):
    model = open_model(str(base_model), backend="torch_hooks")
    here = InProcessRespond(model=model, renderer=ChatRenderer(model.tokenizer), max_new_tokens=6)
    there = EndpointRespond(endpoint=endpoint(url, base_model), max_new_tokens=6)
    ours, theirs = (play(ESCALATIONS, respond, mode=mode) for respond in (here, there))
    assert [t.reply.text for t in theirs] == [t.reply.text for t in ours]
    assert [t.reply.finished for t in theirs] == [t.reply.finished for t in ours]
    assert all(t.reply.text for t in ours)


def test_a_model_that_it_does_not_serve(url):
    request = ChatRequest(conversation=(Turn("user", "hi"),), max_new_tokens=2)
    with pytest.raises(ProbeError, match=url):
        ask(endpoint(url, "another"), [request])
