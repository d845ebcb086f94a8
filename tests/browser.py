"""A headless Chromium, told what to do over a pipe: opens one file, clicks, looks, lists whatever it complains of."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
SPEAK = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One page of one browser. Everything waits; nothing sleeps."""

    def __init__(self, width=1280, height=900) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs, self.out = os.pipe()
        self.back, answers = os.pipe()
        far = [fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in (theirs, answers)]
        words = [CHROMIUM, *QUIET, "--remote-debugging-pipe", f"--user-data-dir={self.folder.name}", "about:blank"]
        command = [sys.executable, "-c", SPEAK, *map(str, far), *words]
        self.process = subprocess.Popen(command, pass_fds=far, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (*far, theirs, answers):
            os.close(fd)
        self.buffer, self.number, self.session = b"", 0, None
        self.events = []
        pages = []
        while not pages:  # it may answer before it has one
            pages = [t["targetId"] for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self.session = self.ask("Target.attachToTarget", targetId=pages[0], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        self.view(width, height)

    def view(self, width=1280, height=900, *, dark=False) -> None:
        """Show pages in a window of that size and in light or dark colors from now on."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.ask("Browser.close")
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:  # how it ends is nobody's question
            self.process.kill()
            self.process.wait()
        os.close(self.out)
        os.close(self.back)
        self.folder.cleanup()

    def ask(self, method, **params):
        """A command's result. Raises RuntimeError where the browser refuses."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path, *, fragment="") -> None:
        """Show a file, and forget what was before; its charts are drawn when this returns."""
        self.ask("Page.navigate", url="about:blank")
        self.events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri() + fragment)
        self.wait("document.readyState === 'complete' && document.body.dataset.drawn === 'yes'")

    def wait(self, condition: str) -> None:
        """Until it holds. Raises AssertionError when it does not within 150 seconds."""
        look = f"({condition}) ? done(true) : Date.now() > end ? done(false) : setTimeout(look, 20)"
        promise = f"new Promise(done => {{ const end = Date.now() + 150000; (function look() {{ {look} }})() }})"
        for _ in range(3):  # a navigation under way takes the first promise with it
            with contextlib.suppress(RuntimeError):
                assert self.run(promise), f"never: {condition}; {self.complaints()}"
                return
        raise AssertionError(f"never: {condition}; {self.complaints()}")

    def run(self, script: str):
        """The value of an expression in the page; a promise is awaited."""
        result = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        """With a real mouse, in the middle of the element."""
        script = """(() => {{ const e = document.querySelector({0}); e.scrollIntoView({{block: "center"}});
            const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"""
        box = self.run(script.format(json.dumps(selector)))
        self.click_at(*box)

    def click_at(self, x: float, y: float) -> None:
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path: Path, *, whole=True) -> None:
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings on its console, so far."""
        self.run("0")
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        found = [json.dumps(e["params"]) for e in self.events if e.get("method") in kinds]
        calls = [e["params"] for e in self.events if e.get("method") == "Runtime.consoleAPICalled"]
        return found + [json.dumps(call) for call in calls if call["type"] in ("error", "warning", "assert")]

    def requests(self) -> list[str]:
        """Addresses it asked for, so far."""
        sent = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def _read(self):
        while b"\0" not in self.buffer:
            chunk = os.read(self.back, 1 << 20)
            if not chunk:
                raise OSError("the browser has gone")
            self.buffer += chunk
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)
