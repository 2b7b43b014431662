"""Replies from a server: the protocol, its faults, and that nothing that came is lost."""

import itertools
import logging
import threading
import time
from email.utils import formatdate

import pytest
from chat_server import ChatServer, say

from refusaldir.errors import ProbeError
from refusaldir.probes.chat_client import KEY_VARIABLE, Patience, ReplyError, chat_address
from refusaldir.probes.endpoint import ChatRequest, Endpoint, EndpointRespond, ask
from refusaldir.probes.plan import drawn_seed
from refusaldir.prompts.schema import Turn

QUICK = Patience(timeout=5.0, retries=2, first_wait=0.01, longest_wait=2.0)


@pytest.fixture
def serve(monkeypatch):
    """Return a maker of servers; each is closed in the end."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    servers = []

    def make(answer=lambda number, body: say(body)):
        servers.append(ChatServer(answer))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def endpoint(server, **fields):
    return Endpoint(**{"url": server.url, "model": "tiny", "patience": QUICK, **fields})


def conversation(text, *before):
    return (*before, Turn("user", text))


def requests(n, **fields):
    return [
        ChatRequest(conversation=conversation(f"question {i}"), max_new_tokens=8, **fields)
        for i in range(n)
    ]


def test_what_is_sent(serve, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, " sk-secret ")
    server = serve()
    turns = conversation("and now", Turn("system", "s"), Turn("user", "u"), Turn("assistant", "a"))
    request = ChatRequest(conversation=turns, max_new_tokens=7, temperature=0.7, seed=11)
    ask(endpoint(server, extra={"top_p": 0.9}), [request])
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer sk-secret"
    assert body == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "and now"},
        ],
        "max_tokens": 7,
        "temperature": 0.7,
        "seed": 11,
        "top_p": 0.9,
    }


def test_without_a_key_or_seed_nothing_is_sent_of_them(serve):
    server = serve()
    ask(endpoint(server), requests(1))
    assert "Authorization" not in server.seen[0][1] and "seed" not in server.seen[0][2]


def test_order_is_kept_and_requests_are_bounded(serve):
    def answer(number, body):
        time.sleep(0.002 * (7 - number % 8))
        return say(body)

    server = serve(answer)
    came = []
    got = ask(
        endpoint(server, concurrency=4), requests(24), on_reply=lambda i, reply: came.append(i)
    )
    assert list(got) == list(range(24))
    assert [reply.text for reply in got.values()] == [f"re: question {i}" for i in range(24)]
    assert sorted(came) == list(range(24)) and came != sorted(came)
    assert 2 <= server.most <= 4


def test_callbacks_are_in_the_callers_thread(serve):
    threads = set()
    ask(
        endpoint(serve()),
        requests(6),
        on_reply=lambda i, reply: threads.add(threading.current_thread()),
    )
    assert threads == {threading.current_thread()}


def test_skip(serve):
    server = serve()
    assert list(ask(endpoint(server), requests(5), skip={0, 3})) == [1, 2, 4]
    assert len(server.seen) == 3
    assert ask(endpoint(server), requests(2), skip={0, 1}) == {}


@pytest.mark.parametrize(
    ("reason", "finished"),
    [
        ("stop", True),
        ("eos_token", True),
        ("length", False),
        ("content_filter", False),
        (None, False),
    ],
)
def test_finished(serve, reason, finished):
    reply = ask(endpoint(serve(lambda n, body: say(body, "a b", reason=reason))), requests(1))[0]
    assert (reply.finished, reply.reason, reply.n_tokens) == (finished, reason or "", 2)


def test_no_text_is_an_empty_reply(serve):
    def answer(number, body):
        data = say(body, "")
        data["choices"][0]["message"]["content"] = None
        del data["usage"]
        return data

    reply = ask(endpoint(serve(answer)), requests(1))[0]
    assert (reply.text, reply.n_tokens, reply.first_token) == ("", None, None)


def test_a_lone_surrogate_can_be_stored(serve):
    reply = ask(endpoint(serve(lambda n, body: say(body, "a \ud800 b"))), requests(1))[0]
    assert reply.text == "a ? b"


def test_first_token(serve):
    def answer(number, body):
        data = say(body, "I cannot")
        if body.get("logprobs"):
            data["choices"][0]["logprobs"] = {"content": [{"token": "I", "logprob": -0.1}]}
        return data

    server = serve(answer)
    assert ask(endpoint(server, first_tokens=True), requests(1))[0].first_token == "I"
    assert ask(endpoint(server), requests(1))[0].first_token is None


@pytest.mark.parametrize("fault", [429, 500, 503, 408, "drop", "half"])
def test_a_passing_fault_is_tried_again(serve, fault):
    def answer(number, body):
        if number:
            return say(body)
        if fault == "half":
            return 200, say(body), {"X-Half": "1"}
        return fault if fault == "drop" else (fault, {"error": {"message": "busy"}}, {})

    server = serve(answer)
    assert ask(endpoint(server), requests(1))[0].text == "re: question 0"
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    "header", [lambda: "0.4", lambda: formatdate(time.time() + 2, usegmt=True)]
)
def test_retry_after_is_kept_to(serve, header):
    server = serve(lambda n, body: say(body) if n else (429, {}, {"Retry-After": header()}))
    start = time.monotonic()
    ask(endpoint(server), requests(1))
    assert 0.35 < time.monotonic() - start < 4


def test_retry_after_beyond_patience_ends_the_run(serve):
    server = serve(lambda n, body: (429, {}, {"Retry-After": "600"}))
    with pytest.raises(ProbeError, match=r"longer than this run waits .*at most 2 s, got 600 s"):
        ask(endpoint(server), requests(1))
    assert len(server.seen) == 1


def test_waits_grow(serve):
    times = []

    def answer(number, body):
        times.append(time.monotonic())
        return 500, "", {}

    slow = Patience(timeout=5.0, retries=2, first_wait=0.1)
    with pytest.raises(ProbeError, match=r"3 tries, got 500 .*: nothing"):
        ask(endpoint(serve(answer), patience=slow), requests(1))
    first, second = (b - a for a, b in itertools.pairwise(times))
    assert first >= 0.05 and second >= 0.1, "at least half of 0.1 and 0.2 s"


def test_waits_are_limited(serve):
    server = serve(lambda n, body: say(body) if n > 1 else (500, "", {}))
    limited = Patience(timeout=5.0, retries=2, first_wait=3600.0, longest_wait=0.02)
    assert len(ask(endpoint(server, patience=limited), requests(1))) == 1


def test_hanging_server(serve):
    release = threading.Event()
    server = serve(lambda n, body: release.wait(20) or say(body))
    patience = Patience(timeout=0.2, retries=1, first_wait=0.01)
    with pytest.raises(ProbeError, match=r"not answer in time .*within 0.2 s in 2 tries, got none"):
        ask(endpoint(server, patience=patience), requests(1))
    release.set()
    assert len(server.seen) == 2


def test_a_server_that_dies_midway_loses_nothing(serve):
    """Every reply that was sent is handed over; a second run asks only for the rest."""
    sent = []

    def answer(number, body):
        if number == 6:
            server.die()
            return "drop"
        sent.append(body["messages"][-1]["content"])
        return say(body)

    server = serve(answer)
    kept = {}
    with pytest.raises(ProbeError) as caught:
        ask(endpoint(server, concurrency=2), requests(20), on_reply=kept.__setitem__)
    message = str(caught.value)
    assert "cannot be reached or broke off" in message and f"({len(kept)} of 20" in message
    assert "\n" not in message
    assert 5 <= len(kept) <= 7 and {f"question {i}" for i in kept} <= set(sent)

    again = serve()
    missing = 20 - len(kept)
    ask(endpoint(again), requests(20), skip=set(kept), on_reply=kept.__setitem__)
    assert len(again.seen) == missing
    assert {i: reply.text for i, reply in kept.items()} == {
        i: f"re: question {i}" for i in range(20)
    }


def test_nobody_there():
    with pytest.raises(ProbeError, match=r"cannot be reached .*127\.0\.0\.1:9/v1.*0 of 3 replies"):
        ask(Endpoint(url="http://127.0.0.1:9", model="tiny", patience=QUICK), requests(3))


def test_what_is_wrong_with_one_request_is_told_apart(serve):
    """A request at fault itself is told and the rest goes on; a server at fault ends the run."""
    bad = {"question 1": 400, "question 2": 500, "question 3": 422}

    def answer(number, body):
        code = bad.get(body["messages"][-1]["content"])
        return say(body) if code is None else (code, {"error": "no"}, {})

    faults = {}
    replies = ask(endpoint(serve(answer)), requests(5), on_fault=faults.__setitem__)
    assert list(replies) == [0, 4] and sorted(faults) == [1, 2, 3]
    assert all(isinstance(fault, ReplyError) for fault in faults.values())
    assert "keeps failing" in faults[2].what and "refuses" in faults[1].what
    for code in (401, 404, 503):
        server = serve(lambda n, body, code=code: (code, "", {}))
        with pytest.raises(ProbeError) as caught:
            ask(endpoint(server), requests(5), on_fault=faults.__setitem__)
        assert not isinstance(caught.value, ReplyError)


@pytest.mark.parametrize(
    ("status", "payload", "message"),
    [
        (
            400,
            {"error": {"message": "max_tokens is too large"}},
            "refuses .*max_tokens is too large",
        ),
        (422, {"detail": "Unsupported fields: {'n'}"}, "refuses a request.*Unsupported fields"),
        (
            404,
            {"message": "no such model"},
            "a model called tiny, got 404 Not Found: no such model",
        ),
        (401, {"error": "who are you"}, "wants a key.*OPENAI_API_KEY.*who are you"),
        (307, "", "refuses a request"),
        (200, "<html>Welcome</html>", "OpenAI protocol.*<html>Welcome"),
        (200, {"choices": []}, "OpenAI protocol"),
        (200, ["choices"], "OpenAI protocol"),
        (200, {"error": "overloaded"}, "OpenAI protocol.*got overloaded"),
        (200, {"choices": [{"message": {"content": 3}}]}, "got int and NoneType"),
    ],
)
def test_a_lasting_fault_ends_the_run_at_once(serve, status, payload, message):
    server = serve(lambda n, body: (status, payload, {"Location": "/elsewhere"}))
    with pytest.raises(ProbeError, match=message):
        ask(endpoint(server, concurrency=1), requests(4))
    assert len(server.seen) == 1


def test_the_key_is_told_to_nobody(serve, monkeypatch, caplog):
    """Neither logged nor shown, even where the server repeats it."""
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    caplog.set_level(logging.DEBUG)
    server = serve(lambda n, body: (401, {"error": {"message": "bad key sk-secret"}}, {}))
    with pytest.raises(ProbeError, match=r"not accept the API key.*bad key \*\*\*") as caught:
        ask(endpoint(server), requests(1))
    assert server.seen[0][1]["Authorization"] == "Bearer sk-secret"
    assert "secret" not in str(caught.value) + caplog.text + repr(endpoint(server))
    monkeypatch.setenv(KEY_VARIABLE, "sk-sécret")
    with pytest.raises(ProbeError, match="cannot be sent") as caught:
        ask(endpoint(server), requests(1))
    assert "cret" not in str(caught.value)


def test_a_failing_callback_ends_the_run(serve):
    server = serve()

    def full(index, reply):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        ask(endpoint(server, concurrency=1), requests(50), on_reply=full)
    time.sleep(0.1)
    assert len(server.seen) < 50


def test_respond_draws_a_seed_for_each_conversation(serve):
    server = serve()
    conversations = [conversation("a"), conversation("b")]
    respond = EndpointRespond(
        endpoint=endpoint(server, concurrency=1),
        max_new_tokens=5,
        temperature=0.7,
        seed=3,
        sample=2,
    )
    assert [reply.text for reply in respond(conversations)] == ["re: a", "re: b"]
    assert [body["seed"] for body in server.bodies()] == [
        drawn_seed(turns, 3, 2) for turns in conversations
    ]
    greedy = EndpointRespond(endpoint=endpoint(server), max_new_tokens=5)
    greedy(conversations)
    assert "seed" not in server.bodies()[-1] and server.bodies()[-1]["temperature"] == 0
    assert greedy([]) == []


@pytest.mark.parametrize(
    "url",
    ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/chat/completions"],
)
def test_addresses(url):
    assert chat_address(url) == "http://h:8000/v1/chat/completions"


def test_paths_of_other_providers_stay():
    assert chat_address("https://h/api/v3/") == "https://h/api/v3/chat/completions"
    assert chat_address("https://h/v1beta/openai") == "https://h/v1beta/openai/chat/completions"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"url": "localhost:8000"}, "not the address of a server"),
        ({"url": "ftp://h"}, "not the address of a server"),
        ({"url": "http://[::1"}, "not the address of a server"),
        ({"url": "http://user:secret@h/v1"}, "a password or a query"),
        ({"model": " "}, "name of the model"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
    ],
)
def test_refuses(fields, message):
    with pytest.raises(ProbeError, match=message) as caught:
        Endpoint(**{"url": "http://h", "model": "m", **fields})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "fields", [{"timeout": 0.0}, {"retries": -1}, {"first_wait": float("nan")}]
)
def test_patience_refuses(fields):
    with pytest.raises(ProbeError):
        Patience(**fields)
