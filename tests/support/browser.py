"""Drive a real Chromium by its DevTools protocol, over a pair of pipes: no further package is needed."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None or os.name != "posix", reason="no Chromium here")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe about:blank"
).split()


class Browser:
    """One tab. messages: what its console and its errors said."""

    def __init__(self, folder: Path) -> None:
        here, self._out = os.pipe()
        self._in, there = os.pipe()

        def as_descriptors() -> None:  # Chromium reads from 3 and writes to 4
            ours, theirs = os.dup(here), os.dup(there)
            os.dup2(ours, 3)
            os.dup2(theirs, 4)

        self._process = subprocess.Popen(
            [str(CHROMIUM), f"--user-data-dir={folder}", *FLAGS],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=as_descriptors,
            close_fds=False,
        )
        os.close(here)
        os.close(there)
        self._read, self._number, self._session = b"", 0, ""
        self.messages: list[str] = []
        target = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result."""
        self._number += 1
        content = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            content["sessionId"] = self._session
        os.write(self._out, json.dumps(content).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            part = os.read(self._in, 1 << 20)
            assert part, "Chromium has ended"
            self._read += part
        one, self._read = self._read.split(b"\0", 1)
        answer = json.loads(one)
        kind, said = answer.get("method"), answer.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(said["exceptionDetails"])[:2000])
        elif kind == "Runtime.consoleAPICalled":
            self.messages.append(json.dumps(said["args"])[:2000])
        elif kind == "Log.entryAdded":
            self.messages.append(said["entry"]["text"])
        return answer

    def open(self, address: str) -> None:
        """Open a page and wait until it has drawn itself."""
        self.call("Page.navigate", url=address)
        self.until("document.documentElement?.dataset.ready === 'yes'")

    def value(self, script: str) -> Any:
        """Return the value of an expression; a promise is awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 60.0) -> Any:
        """Wait until an expression is true and return its value."""
        end = time.monotonic() + seconds
        while not (found := self.value(script)):
            assert time.monotonic() < end, (f"not true within {seconds} s: {script}", self.messages)
            time.sleep(0.05)
        return found

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the window, and whether the reader wants dark pages."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write a screenshot as PNG: of the window, or of the whole page."""
        found = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole, **(self._page() if whole else {})
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def _page(self) -> dict[str, Any]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait(20)
        os.close(self._out)
        os.close(self._in)
