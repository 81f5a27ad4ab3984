"""A headless Chromium, driven through its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, Self

import websocket

from tests.support.waiting import eventually


class Browser:
    """One tab of a fresh Chromium with its own profile.

    Args:
        folder: for the profile.
        pictures: receives screenshots.
        size: of the window, in pixels.
    """

    def __init__(self, folder: Path, pictures: Path, size: tuple[int, int] = (1600, 1400)) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert program, "There is no Chromium here. Try: apt-get install chromium"
        self._pictures, self._size, self._number = pictures, size, 0
        pictures.mkdir(parents=True, exist_ok=True)
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command += [f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}", "--no-first-run", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = folder / "DevToolsActivePort"
        eventually(lambda: port.exists() and port.read_text().strip(), "the start of Chromium")
        with urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json") as answer:
            page = next(one for one in json.load(answer) if one["type"] == "page")
        self._socket = websocket.create_connection(
            page["webSocketDebuggerUrl"], timeout=120, max_size=None, suppress_origin=True
        )
        self.call("Page.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": arguments}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """Return what an expression of JavaScript gives in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, address: str) -> None:
        """Go to an address; MLflow's pages are one program, so the page before is left first."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)

    def text(self) -> str:
        """Return what a person can read."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def until(self, *texts: str) -> str:
        """Wait until the page shows all texts; return all that it shows."""
        eventually(
            lambda: all(one in self.text() for one in texts), lambda: f"{texts} on the page: {self.text()[:3000]}"
        )
        return self.text()

    def click(self, text: str) -> None:
        """Click on the first element that shows a text. It is a link, a button or a tab."""
        script = """(text => {
            const shown = [...document.querySelectorAll('a, button, [role=tab]')]
                .filter(one => one.innerText && one.innerText.trim() === text && one.offsetParent);
            if (!shown.length) return false;
            shown[0].click();
            return true;
        })"""
        eventually(lambda: self.evaluate(f"{script}({json.dumps(text)})"), f"{text!r} to click on")

    def press(self, key: str) -> None:
        """Press a key, such as ``Home``, where the focus is."""
        for kind in ("keyDown", "keyUp"):
            codes = {"Home": 36, "ArrowRight": 39}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def settled(self, expression: str) -> None:
        """Wait until a JavaScript expression repeats its truthy value thrice."""
        last: list[Any] = []

        def same() -> bool:
            last.append(self.evaluate(f"new Promise(done => setTimeout(() => done({expression}), 200))"))
            return bool(last[-1]) and len(last) >= 3 and all(one == last[-1] for one in last[-3:])

        eventually(same, lambda: f"an end of changes of {expression}: {str(last[-1])[:300]}")

    def screenshot(self, name: str) -> Path:
        """Keep a picture of what is seen."""
        file = self._pictures / f"{name}.png"
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return file
