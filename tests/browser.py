"""A real browser for the tests: headless Chromium over its debugging pipe, nothing installed."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--remote-debugging-pipe", "--no-first-run", "--disable-extensions", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--force-color-profile=srgb", "about:blank",
)  # fmt: skip


def executable():
    """Path of Chromium or Chrome, or None."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium(folder):
    """Yield a `Browser` whose profile lies in a folder; skip the test where there is none."""
    path = executable()
    if path is None:
        pytest.skip("no Chromium here, so the page is not tried in a browser")
    read_there, write_here = os.pipe()
    read_here, write_there = os.pipe()
    # The browser reads commands from descriptor 3 and writes answers to 4.
    script = f'exec "$@" 3<&{read_there} 4>&{write_there}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", path, f"--user-data-dir={folder}", *_FLAGS],
        pass_fds=(read_there, write_there),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_there)
    os.close(write_there)
    browser = Browser(read_here, write_here)
    try:
        try:
            browser.call("Browser.getVersion", wait=30)
        except (OSError, TimeoutError):
            pytest.skip("Chromium does not start here, so the page is not tried in a browser")
        yield browser
    finally:
        try:
            browser.call("Browser.close")
            process.wait(20)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        os.close(read_here)
        os.close(write_here)


class Browser:
    """The debugging protocol: calls, and what the pages reported."""

    def __init__(self, read, write):
        self._read, self._write = read, write
        self._count, self._buffer = 0, b""
        self.events = []

    def call(self, method, session=None, *, wait=60.0, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + wait
        while True:
            answer = self._next(end)
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method, session, wait=60.0):
        end = time.monotonic() + wait
        while True:
            for i, event in enumerate(self.events):
                if event.get("method") == method and event.get("sessionId") == session:
                    return self.events.pop(i)
            self.events.append(self._next(end))

    def _next(self, end):
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise TimeoutError("the browser did not answer")
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise OSError("the browser is gone")
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, url, *, width=1280, height=900, dark=False, phone=False):
        """Open a page; everything it asks for and says is kept."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired", session)
        return page


class Page:
    """One page."""

    def __init__(self, browser, session):
        self._browser, self._session = browser, session

    def call(self, method, **params):
        return self._browser.call(method, self._session, **params)

    def run(self, code):
        """Value of an expression in the page; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def point(self, x, y):
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path, *, whole=False, clip=None):
        extra = {"clip": clip} if clip else {}
        shot = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole, **extra
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def events(self, method):
        """What the page reported under a name so far."""
        self.run("0")
        return [
            event["params"]
            for event in self._browser.events
            if event.get("method") == method and event.get("sessionId") == self._session
        ]
