"""Requests to a server that speaks the OpenAI protocol, tried again where that may help.

A fault that may pass (no connection, timeout, 408, 409, 425, 429, 5xx) is tried again after
``first_wait · 2ᵏ`` seconds, shortened at random by up to a half so that the tries of several
threads part, or after what the server asks for (``Retry-After``).

Two kinds of failure are kept apart. A server that is gone, overloaded, refuses the key or does not
know the model concerns every request: `ProbeError`. One request that it will not or cannot answer
is a `ReplyError`: a judge records it and goes on, a probe stops there.

The API key is read from the environment variable ``OPENAI_API_KEY``. It goes into the header of
the requests and nowhere else.
"""

import os
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import httpx

from refusaldir.errors import ProbeError

#: Name of the environment variable that holds the key.
KEY_VARIABLE = "OPENAI_API_KEY"

_ROUTE = "chat/completions"
_ABOUT_REQUEST = frozenset({400, 413, 422})
_RETRIED = frozenset({408, 409, 425, 429})
#: Of those above 499, what a server or proxy says when it is down or has too much to do.
_DOWN = frozenset({502, 503, 504})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CONNECT_SECONDS = 10.0
_SHOWN = 200


class ReplyError(ProbeError):
    """The server answers, but gives no reply to this request."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a server and how often to try.

    Attributes:
        timeout: Seconds without a byte after which a request counts as failed.
        retries: Tries after the first.
        first_wait: Seconds before the second try, doubled at each further one.
        longest_wait: Most seconds between two tries; a server that asks for more ends the run.
    """

    timeout: float = 300.0
    retries: int = 5
    first_wait: float = 0.5
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.timeout > 0:
            raise ProbeError("a timeout must be above 0 seconds", got=self.timeout)
        for name in ("retries", "first_wait", "longest_wait"):
            if not getattr(self, name) >= 0:
                raise ProbeError(f"{name} must be at least 0", got=getattr(self, name))


def chat_address(url: str) -> str:
    """Full address of the chat route of a server given with or without the route.

    ``/v1`` is added where the address has no path; others, such as ``/api/v3``, stay.

    Raises:
        ProbeError: It is no address, or one that holds a password or a query.
    """
    got = repr(url)
    try:
        parsed = httpx.URL(url)
        if parsed.userinfo or parsed.query:
            got = "an address with a password or a query"  # Not shown: it may be a secret.
        elif parsed.scheme in ("http", "https") and parsed.host:
            base = url.rstrip("/").removesuffix("/" + _ROUTE)
            return f"{base if httpx.URL(base).path.strip('/') else base + '/v1'}/{_ROUTE}"
    except httpx.InvalidURL:
        pass
    raise ProbeError(
        "this is not the address of a server",
        expected="one such as http://localhost:8000/v1, without password or query",
        got=got,
        next_step=f"A key belongs in the environment variable {KEY_VARIABLE}",
    )


class ChatClient:
    """Connections to one server; may be used from several threads.

    Args:
        url: Address, see `chat_address`.
        patience: How long to wait and how often to try.
        concurrency: Requests at a time.

    Raises:
        ProbeError: The address or the API key cannot be used.
    """

    def __init__(self, url: str, *, patience: Patience, concurrency: int = 1) -> None:
        """Prepare; nothing is sent yet."""
        self.address = chat_address(url)
        self.patience = patience
        #: Once set, no request is tried again.
        self.stop = threading.Event()
        self._key = _api_key()
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(
                patience.timeout, connect=min(_CONNECT_SECONDS, patience.timeout), pool=None
            ),
            limits=httpx.Limits(max_connections=concurrency),
            # A proxy of the environment is for the outside.
            trust_env=httpx.URL(self.address).host not in _LOOPBACK,
        )

    def close(self) -> None:
        """Close the connections."""
        self.stop.set()
        self._client.close()

    def post(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send a request until it is answered.

        Args:
            body: Fields of the request.

        Returns:
            The answer, an object with at least one choice that holds a message; None when
            ``stop`` was set meanwhile.

        Raises:
            ReplyError: The server refuses this request, or fails on it every time.
            ProbeError: It cannot be reached, wants another key or model, keeps being overloaded,
                or answers otherwise than by the protocol.
        """
        patience = self.patience
        for tried in range(patience.retries + 1):
            asked_to_wait = 0.0
            try:
                response = self._client.post(self.address, json=dict(body))
            except httpx.HTTPError as error:
                fault = self._broken(error, tried + 1)
            else:
                if response.is_success:
                    return self._answer(response)
                fault = self._refusal(response, tried + 1, str(body.get("model", "")))
                if response.status_code not in _RETRIED and response.status_code < 500:
                    raise fault
                asked_to_wait = _retry_after(response)
            if tried == patience.retries:
                raise fault
            if asked_to_wait > patience.longest_wait:
                raise self._error(
                    "the server asks to be left alone for longer than this run waits",
                    expected=f"at most {patience.longest_wait:g} s",
                    got=f"{asked_to_wait:.0f} s",
                    next_step="Repeat the run later or with fewer requests at a time",
                )
            wait = patience.first_wait * 2**tried * random.uniform(0.5, 1.0)
            if self.stop.wait(max(min(wait, patience.longest_wait), asked_to_wait)):
                break
        return None

    def _answer(self, response: httpx.Response) -> dict[str, Any]:
        try:
            data = response.json()
            if isinstance(data, dict) and isinstance(data["choices"][0]["message"], dict):
                return data
        except (ValueError, KeyError, IndexError, TypeError):
            pass
        raise self._error(
            "the server does not answer in the OpenAI protocol",
            expected="a JSON object with choices[0].message",
            got=self._shown(response),
            next_step="Check the address",
        )

    def _refusal(self, response: httpx.Response, tries: int, model: str) -> ProbeError:
        code = response.status_code
        got = f"{code} {response.reason_phrase}: {self._shown(response)}"
        if code in (401, 403):
            return self._error(
                "the server does not accept the API key" if self._key else "the server wants a key",
                expected=f"a valid key in the environment variable {KEY_VARIABLE}",
                got=got,
                next_step="Set it and repeat the run",
            )
        if code == 404:
            return self._error(
                "the server does not know this address or this model",
                expected=f"a model called {model}",
                got=got,
                next_step="Look at the names it serves (GET /v1/models)",
            )
        if code in _RETRIED or code >= 500:
            return self._error(
                "the server keeps failing",
                expected=f"an answer in {tries} tries",
                got=got,
                next_step="Look at the server's log, and repeat the run",
                kind=ReplyError if code >= 500 and code not in _DOWN else ProbeError,
            )
        return self._error(
            "the server refuses a request",
            expected="an answer",
            got=got,
            next_step="Mend what it names and repeat the run",
            kind=ReplyError if code in _ABOUT_REQUEST else ProbeError,
        )

    def _broken(self, error: httpx.HTTPError, tries: int) -> ProbeError:
        if isinstance(error, httpx.TimeoutException):
            return self._error(
                "the server does not answer in time",
                expected=f"an answer within {self.patience.timeout:g} s in {tries} tries",
                got="none",
                next_step="Give it more time, or fewer requests at a time",
            )
        return self._error(
            "the server cannot be reached or broke off",
            expected=f"an answer in {tries} tries",
            got=str(error) or type(error).__name__,
            next_step="Check that it runs at this address, and repeat the run",
        )

    def _error(
        self,
        what: str,
        *,
        expected: str,
        got: str,
        next_step: str,
        kind: type[ProbeError] = ProbeError,
    ) -> ProbeError:
        return kind(what, expected=expected, got=got, where=self.address, next_step=next_step)

    def _shown(self, response: httpx.Response) -> str:
        """What the server said, shortened, the key blotted out."""
        try:
            data = response.json()
            error = data.get("error", data)
            said = error if isinstance(error, str) else error.get("message") or data["detail"]
        except (ValueError, AttributeError, KeyError, TypeError):
            said = response.text
        text = " ".join(str(said).split()) or "nothing"
        if self._key:
            text = text.replace(self._key, "***")
        return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _api_key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ProbeError(
            "the API key cannot be sent",
            expected="printable ASCII characters",
            got="others",
            where=f"environment variable {KEY_VARIABLE}",
            next_step="Set it again",
        )
    return key


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 when it does not."""
    value = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time()
        except ValueError:
            return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0
