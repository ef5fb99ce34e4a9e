"""A headless Chromium for the tests, through the DevTools protocol on pipes, which needs no package."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # which a container's root cannot have
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
PATIENCE = 60
"""Seconds for what takes one or two on an idle machine."""


def find_browser() -> str | None:
    """Return the path of a Chromium; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """A page of the browser that :func:`open_browser` starts.

    Attributes:
        requests: the addresses that the page has asked for.
        complaints: the errors that it has not caught, and what the browser has logged as errors.
    """

    def __init__(self, process: subprocess.Popen, orders: int, reports: int, downloads: Path) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._downloads, self._downloaded = downloads, []
        self._process, self._orders, self._reports = process, orders, reports
        self._received, self._number, self._session = b"", 0, None
        target = self.order("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.order("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.order(f"{domain}.enable")
        behavior = dict(behavior="allowAndName", downloadPath=str(downloads), eventsEnabled=True)
        self.order("Browser.setDownloadBehavior", **behavior)

    def order(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Browser.", "Target.")):
            message["sessionId"] = self._session
        os.write(self._orders, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while True:
            report = self._next_report(end)
            if report.get("id") == self._number:
                assert "error" not in report, report["error"]
                return report["result"]
            self._note(report)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page; of a promise, what it resolves to."""
        done = self.order("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Return the value of an expression in the page when it is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, (expression, self.complaints, self.evaluate("document.body.innerText"))
            time.sleep(0.05)
        return value

    def open(self, address: str) -> None:
        self.requests.clear()
        self.complaints.clear()
        self.order("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file in an input."""
        root = self.order("DOM.getDocument")["root"]["nodeId"]
        node = self.order("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.order("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def download(self, selector: str) -> bytes:
        """Click on a button, and return the content of the file that it saves."""
        self._downloaded.clear()
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
        end = time.monotonic() + PATIENCE
        while not self._downloaded:
            self._note(self._next_report(end))
        return (self._downloads / self._downloaded[0]).read_bytes()

    def screenshot(self, width: int, height: int) -> bytes:
        """Return a JPEG of the page in a window of a size."""
        metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.order("Emulation.setDeviceMetricsOverride", **metrics)
        return base64.b64decode(self.order("Page.captureScreenshot", format="jpeg", quality=90)["data"])

    def _next_report(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select([self._reports], [], [], max(0, end - time.monotonic()))
            part = os.read(self._reports, 2**20) if ready else b""
            assert part, f"the browser does not answer, its status is {self._process.poll()}"
            self._received += part
        report, _, self._received = self._received.partition(b"\0")
        return json.loads(report)

    def _note(self, report: dict[str, Any]) -> None:
        method, given = report.get("method"), report.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(given["exceptionDetails"].get("exception", {}).get("description", str(given)))
        elif method == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.complaints.append(given["entry"]["text"])
        elif method == "Browser.downloadProgress" and given["state"] == "completed":
            self._downloaded.append(given["guid"])  # its name in the folder


@contextmanager
def open_browser(program: str, folder: Path) -> Iterator[Tab]:
    """Start a browser with an empty profile in a folder, and yield a page of it."""
    downloads = folder / "downloads"
    downloads.mkdir()
    their_orders, orders = os.pipe()
    reports, their_reports = os.pipe()
    # The browser reads from descriptor 3 and writes to 4.
    start = ["bash", "-c", f'exec "$@" 3<&{their_orders} 4>&{their_reports}', "bash", program, *FLAGS]
    process = subprocess.Popen(
        [*start, f"--user-data-dir={folder / 'profile'}"],
        pass_fds=(their_orders, their_reports),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_orders)
    os.close(their_reports)
    try:
        tab = Tab(process, orders, reports, downloads)
        yield tab
        tab.order("Browser.close")
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
        os.close(orders)
        os.close(reports)
