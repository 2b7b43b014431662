"""One reply from an OpenAI-compatible server, patiently: timeouts, retries, Retry-After.

Two kinds of failure are kept apart. A server that is gone, refuses the key or does not know the
model concerns every request: `ProbeError`, and the run stops, to be resumed. A single request that
the server will not or cannot answer is a `ReplyError`, which a judge records.
"""

import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

import httpx

from refusaldir.errors import ProbeError

#: Environment variable with the key of the endpoint; no key is sent without it.
KEY_VARIABLE = "OPENAI_API_KEY"

#: The request itself is at fault.
_ABOUT_REQUEST = frozenset({400, 413, 422})
#: Worth another try.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
#: Passing, and when it does not pass, not about this request.
_OVERLOADED = frozenset({408, 429, 502, 503, 504})


class ReplyError(Exception):
    """The server answers, but not this request."""


@dataclass(frozen=True, kw_only=True)
class ChatEndpoint:
    """A model behind ``/chat/completions``.

    Attributes:
        url: Base address, e.g. ``http://localhost:8000/v1``; ``/v1`` is added when there is no
            path.
        model: Name under which the server knows the model.
        timeout: Seconds to wait for a connection and between bytes.
        attempts: Tries of one request.
        first_wait: Seconds before the second try; doubled each time, with jitter.
        longest_wait: Most seconds between two tries, and most that a Retry-After is waited for.
    """

    url: str
    model: str
    timeout: float = 60.0
    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    _client: httpx.Client = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the address and open the client.

        Raises:
            ProbeError: The address is not one of HTTP, or a number is out of range.
        """
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ProbeError(
                "this is not the address of an endpoint",
                expected="an address such as http://localhost:8000/v1",
                got=repr(self.url),
            )
        if parsed.userinfo:
            raise ProbeError(
                "the address of an endpoint must not hold a password",
                where=parsed.host,
                next_step=f"Put the key in the environment variable {KEY_VARIABLE}",
            )
        if not self.model:
            raise ProbeError("an endpoint needs the name of a model", where=self.url)
        if self.attempts < 1 or not self.timeout > 0:
            raise ProbeError(
                "a request needs at least one attempt and some time",
                got=f"{self.attempts} attempts, {self.timeout} s",
            )
        object.__setattr__(self, "_client", httpx.Client(timeout=self.timeout))

    @cached_property
    def address(self) -> str:
        """Where requests go."""
        base = self.url.rstrip("/")
        if base.endswith("/chat/completions"):
            return base
        path = httpx.URL(base).path.strip("/")
        return f"{base}/chat/completions" if path else f"{base}/v1/chat/completions"

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._client.close()

    def complete(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int) -> str:
        """The model's greedy reply.

        Raises:
            ReplyError: This request gets no usable reply: refused as such, a fault of the server
                at every try, or cut off at ``max_tokens``.
            ProbeError: The endpoint cannot be used.
        """
        body = {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        wait = self.first_wait
        for attempt in range(1, self.attempts + 1):
            last = attempt == self.attempts
            asked: float | None = None
            try:
                response = self._client.post(self.address, json=body, headers=headers)
            except httpx.TransportError as error:
                if last:
                    raise self._gone(f"{type(error).__name__} {error}".strip()) from error
            else:
                status = response.status_code
                if status == 200:
                    reply = _reply(response)
                    if reply is not None:
                        return reply
                    if last:
                        raise ReplyError("the server's answer is not that of the protocol")
                elif status in _PASSING:
                    asked = _retry_after(response)
                    if last or (asked is not None and asked > self.longest_wait):
                        self._give_up(response, asked)
                else:
                    self._give_up(response, None)
            pause = min(wait, self.longest_wait) * random.uniform(0.5, 1.0)
            time.sleep(pause if asked is None else max(asked, 0.0))
            wait *= 2
        raise AssertionError("the last attempt returns or raises")  # pragma: no cover

    def _give_up(self, response: httpx.Response, asked: float | None) -> None:
        status = response.status_code
        if status in _ABOUT_REQUEST or (status in _PASSING and status not in _OVERLOADED):
            raise ReplyError(f"HTTP {status}: {_detail(response)}")
        if status in (401, 403):
            raise ProbeError(
                "the endpoint refuses the key",
                got=f"HTTP {status}",
                where=self.address,
                next_step=f"Put a key that it accepts in the environment variable {KEY_VARIABLE}",
            )
        if status == 404:
            raise ProbeError(
                "the endpoint has no such address or model",
                got=f"HTTP 404: {_detail(response)}",
                where=f"{self.address}, model {self.model}",
                next_step="Check both; the server lists its models at /v1/models",
            )
        waits = "" if asked is None else f", asking to wait {asked:.0f} s"
        raise self._gone(f"HTTP {status}{waits}")

    def _gone(self, got: str) -> ProbeError:
        return ProbeError(
            "the endpoint does not answer",
            expected=f"a reply within {self.timeout:g} s in {self.attempts} attempts",
            got=got,
            where=self.address,
            next_step="See that the server runs, then repeat the command: it goes on from there",
        )


def _reply(response: httpx.Response) -> str | None:
    """The text of the reply, or None when the answer is not that of the protocol."""
    try:
        choice = response.json()["choices"][0]
        text = choice["message"]["content"]
        reason = choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if reason == "length":
        raise ReplyError("the reply was cut off by its budget")
    # A model that stops at once gives null.
    return text if isinstance(text, str) else "" if text is None else None


def _detail(response: httpx.Response) -> str:
    """What the server says of an error, shortened."""
    try:
        value: Any = response.json()
        error = value.get("error", value)
        said = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        said = response.text
    said = " ".join(said.split())
    return said[:200] or "no reason given"


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, given in seconds or as a date."""
    value = response.headers.get("Retry-After", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value)
        except ValueError:
            return None
        if until.tzinfo is None:
            until = until.replace(tzinfo=timezone.utc)
        return max(0.0, (until - datetime.now(timezone.utc)).total_seconds())
    return seconds if 0 <= seconds < float("inf") else None
