"""A real Chromium without a window, driven through a pipe: what a reader sees, does, and what the page asks for."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Bash gives the browser our ends of the pipes under the numbers that it expects.
START = 'exec "$@" 3<&"$COMMANDS" 4>&"$ANSWERS"'


class Page:
    """One tab.

    Attributes:
        requests: addresses of everything that was asked for.
        complaints: errors and warnings of the page and the browser.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = os.fdopen(commands, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb")
        self._number = 0
        self._session = ""
        self._seen: set[str] = set()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser for something."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, file: Path) -> None:
        """Open a file, until it is loaded."""
        self._seen.clear()
        self.call("Page.navigate", url=file.as_uri())
        while "Page.loadEventFired" not in self._seen:
            self._read()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """What stands in all elements of a selector, as it is shown."""
        return self.evaluate(f"[...document.querySelectorAll({selector!r})].map(one => one.innerText.trim())")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key of the keyboard."""
        own = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **own)
        self.call("Input.dispatchKeyEvent", type="keyUp", **own)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def resize(self, width: int, height: int = 900) -> None:
        """Give the window another size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, file: Path) -> None:
        """The whole page as a PNG file, for people."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def print(self) -> bytes:
        """The page on paper, as a PDF."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])

    def close(self) -> None:
        """End the browser."""
        self._session = ""
        self.call("Browser.close")
        self._commands.close()
        self._answers.close()

    def _read(self) -> dict[str, Any]:
        """The next message; events are noted."""
        content = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser is gone"
            content += byte
        message = json.loads(content)
        method, said = message.get("method", ""), message.get("params", {})
        self._seen.add(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(said["args"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(said["entry"]["text"])
        return message


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser of its own that reaches no network.

    Args:
        profile: an empty folder for what it keeps.
    """
    browser = shutil.which("chromium")
    assert browser is not None, "install Debian's package chromium: make debian"
    (its_commands, commands), (answers, its_answers) = os.pipe(), os.pipe()
    process = subprocess.Popen(
        ["bash", "-c", START, "bash", browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--remote-debugging-pipe"],
        env={"HOME": str(profile), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "COMMANDS": str(its_commands),
             "ANSWERS": str(its_answers)},
        pass_fds=(its_commands, its_answers),
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(its_commands)
    os.close(its_answers)
    try:
        page = Page(commands, answers)
        yield page
        page.close()
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
