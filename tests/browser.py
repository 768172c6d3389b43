"""A headless Chromium, driven by the DevTools protocol over a pipe: no driver, no network."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--mute-audio"),
    *("--no-first-run", "--disable-dev-shm-usage", "--disable-extensions", "--hide-scrollbars"),
    *("--autoplay-policy=no-user-gesture-required", "--disable-background-networking"),
)
_LIMIT_SECONDS = 60


def find_chromium() -> str:
    """Return the browser's path; skip the test if there is none. `$CHROMIUM` names another."""
    names = [os.environ["CHROMIUM"]] if "CHROMIUM" in os.environ else _NAMES
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium here to open pages with (Debian: apt-get install chromium)")
    return found


class Browser:
    """One tab. Errors and messages of the page's console are in `complaints`."""

    def __init__(self, to_browser: int, from_browser: int):
        self._to, self._from, self._unread = to_browser, from_browser, b""
        self._number = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            received = self._receive()
            if received.get("id") == self._number:
                assert "error" not in received, received["error"]
                return received["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], _LIMIT_SECONDS)
            assert ready, "the browser does not answer"
            some = os.read(self._from, 2**16)
            assert some, "the browser has ended"
            self._unread += some
        content, _, self._unread = self._unread.partition(b"\0")
        received = json.loads(content)
        parameters = received.get("params", {})
        match received.get("method"):
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.complaints.append(details.get("exception", details).get("description", ""))
            case "Runtime.consoleAPICalled" | "Log.entryAdded":
                self.complaints.append(json.dumps(parameters))
        return received

    def open(self, page: Path) -> None:
        """Open a file, and wait until it has loaded."""
        self.complaints.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : onload = done)")

    def run(self, script: str) -> Any:
        """Evaluate JavaScript; return its value, of a promise once it is fulfilled."""
        found = self.call(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
            timeout=1000 * _LIMIT_SECONDS,
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, file: Path, width: int, height: int, dark: bool = False) -> None:
        """Write a PNG of the window at this size."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        found = self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium, and end it."""
    chromium = find_chromium()
    for_browser, to_browser = os.pipe()
    from_browser, by_browser = os.pipe()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser reads from 3 and writes to 4.
        command = f'exec "$0" "$@" 3<&{for_browser} 4>&{by_browser}'
        process = subprocess.Popen(
            ["bash", "-c", command, chromium, *_FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(for_browser, by_browser),
            stderr=subprocess.DEVNULL,
        )
        os.close(for_browser)
        os.close(by_browser)
        try:
            yield Browser(to_browser, from_browser)
        finally:
            os.close(to_browser)
            os.close(from_browser)
            process.terminate()
            process.wait(_LIMIT_SECONDS)
