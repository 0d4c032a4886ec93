"""The explorer, opened in a real Chromium that is driven over its debugging pipe."""

import base64
import fcntl
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.plots.test_plot import LATENTS, make_run
from vaebench.errors import InputError
from vaebench.models.mlp import VAE
from vaebench.plots import draw
from vaebench.plots.explorer import POINTS
from vaebench.plots.run import Run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--remote-debugging-pipe"
).split()
# Chromium reads commands from descriptor 3 and writes to 4; this puts ours there.
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execvp(sys.argv[3], sys.argv[3:])"
)
SECONDS = 30  # that Chromium may take for anything


class Browser:
    """One page in a headless Chromium; ``problems`` gathers exceptions and console messages.

    A request to any network would be among them: the page's own policy forbids it, and says so.
    (Chromium's own record of requests is left off: with it, this test stalled for 20 seconds or
    more about once in 25 pages; without it, never in 200.)
    """

    def __init__(self, program: str, profile: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # Out of the way of 3 and 4, so that putting them there overwrites neither.
        far = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs_in, theirs_out)]
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *map(str, far), *command],
            pass_fds=far,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (theirs_in, theirs_out, *far):
            os.close(fd)
        os.set_blocking(ours_in, False)
        self.reader, self.writer, self.rest, self.sent = ours_in, ours_out, b"", 0
        self.session: str | None = None
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and give its answer; note problems reported in between."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.writer, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self.sent:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self.rest:
            assert time.monotonic() < deadline, "Chromium does not answer"
            try:
                self.rest += os.read(self.reader, 1 << 20)
            except BlockingIOError:
                time.sleep(0.002)
        message, self.rest = self.rest.split(b"\0", 1)
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        if event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.problems.append(json.dumps(event["params"]))
        if event["method"] == "Log.entryAdded":
            self.problems.append(event["params"]["entry"]["text"])

    def run(self, script: str) -> Any:
        """Evaluate JavaScript, wait for it if it is a promise, and give its value."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(
        self, page: Path, width: int = 1200, height: int = 900, *, phone: bool = False
    ) -> None:
        """Show a page of this size in CSS pixels and wait until it has drawn itself."""
        self.problems.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.call("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + SECONDS
        while not self.run("document.readyState === 'complete' && 'vaebench' in window"):
            assert time.monotonic() < deadline, f"the page does not load: {self.problems}"
            time.sleep(0.02)
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Send a real mouse event, in CSS pixels."""
        held = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    def key(self, name: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def picture(self) -> bytes:
        """Take a PNG of what is shown."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """End Chromium."""
        self.session = None
        try:
            self.call("Browser.close")
        finally:
            self.process.terminate()
            self.process.wait(SECONDS)
            os.close(self.reader)
            os.close(self.writer)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser to open the explorer in: none of {', '.join(BROWSERS)} is found")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A run folder by latent size, its explorer drawn."""
    folder = tmp_path_factory.mktemp("explore")
    made = {latent: make_run(folder / f"z{latent}", latent) for latent in LATENTS}
    for run in made.values():
        draw(run, ["explore"])
    return made


def page(run: Path) -> Path:
    return run / "pictures" / "explore.html"


def shown(browser: Browser, canvas: str) -> torch.Tensor:
    """Read a canvas's grey values, (28, 28) in [0, 1]."""
    data = browser.run(
        f"Array.from(document.getElementById('{canvas}').getContext('2d')"
        ".getImageData(0, 0, 28, 28).data)"
    )
    return torch.tensor(data).reshape(28, 28, 4)[..., 0] / 255


def decoded(run: Run, z: list[float] | torch.Tensor) -> torch.Tensor:
    """What PyTorch decodes at z, (28, 28)."""
    with torch.no_grad():
        return run.model.pixels(run.model.decode(torch.as_tensor(z)[None]))[0]


def plane_at(browser: Browser, right: float, up: float) -> tuple[float, float, list[float]]:
    """The place, in CSS pixels, at these parts of the plane; and its coordinates."""
    box = browser.run(
        "(b => [b.x, b.y, b.width])(document.getElementById('plane').getBoundingClientRect())"
    )
    reach = browser.run("vaebench.reach")
    x, y = round(box[0] + right * box[2]), round(box[1] + (1 - up) * box[2])
    across = [2 * (x - box[0]) / box[2] - 1, 1 - 2 * (y - box[1]) / box[2]]
    return x, y, [reach * part for part in across]


@pytest.mark.parametrize("latent", LATENTS)
def test_the_image_under_the_pointer_is_pytorchs(
    latent: int, browser: Browser, runs: dict[int, Path]
) -> None:
    run = Run(runs[latent])
    browser.open(page(runs[latent]))
    if latent > 2:
        browser.run("document.getElementById('reset').click()")
    for right, up in ((0.5, 0.5), (0.1, 0.85), (0.93, 0.2)):
        x, y, coordinates = plane_at(browser, right, up)
        browser.mouse("mouseMoved", x, y)
        browser.settle()
        z = run.plane.lift(torch.tensor([coordinates]))[0]
        assert (shown(browser, "decoded") - decoded(run, z)).abs().max() < 1 / 255
        hook = torch.tensor(browser.run(f"vaebench.decodeAt({z.tolist()})"))
        torch.testing.assert_close(hook, decoded(run, z).flatten(), atol=1e-5, rtol=0)
    assert browser.problems == []


@pytest.mark.parametrize("latent", LATENTS)
def test_a_click_shows_original_and_reconstruction(
    latent: int, browser: Browser, runs: dict[int, Path]
) -> None:
    run = Run(runs[latent])
    browser.open(page(runs[latent]))
    x, y, coordinates = plane_at(browser, 0.45, 0.4)
    browser.mouse("mousePressed", x, y)
    browser.mouse("mouseReleased", x, y)
    browser.settle()
    distances = (run.plane.project(run.codes[0]) - torch.tensor(coordinates)).norm(dim=1)
    nearest = int(distances.argmin())
    assert browser.run("vaebench.state().chosen") == nearest
    assert torch.equal(shown(browser, "original"), run.x[nearest])
    wanted = decoded(run, run.codes[0][nearest])
    assert (shown(browser, "reconstruction") - wanted).abs().max() < 1 / 255
    assert (shown(browser, "decoded") - wanted).abs().max() < 1 / 255  # the sliders went along
    assert run.test.labels is not None
    label = browser.run("document.getElementById('chosen').textContent")
    assert label == f"no. {nearest}, a {int(run.test.labels[nearest])}"
    assert browser.problems == []


def test_keyboard_and_sliders(browser: Browser, runs: dict[int, Path]) -> None:
    run = Run(runs[20])
    browser.open(page(runs[20]))
    browser.run("document.getElementById('reset').click()")
    browser.run("document.getElementById('plane').focus()")
    for name in ("Home", "ArrowRight", "ArrowRight", "ArrowUp"):
        browser.key(name)
    browser.run(
        "(s => { s.value = 1.5; s.dispatchEvent(new Event('input')); })"
        "(document.querySelector('#sliders input'))"
    )
    browser.settle()
    z = run.plane.basis[:, :3] @ torch.tensor([0.2, 0.1, 1.5])
    torch.testing.assert_close(torch.tensor(browser.run("vaebench.state().z")), z)
    assert (shown(browser, "decoded") - decoded(run, z)).abs().max() < 1 / 255
    browser.key("Enter")
    assert "no. " in browser.run("document.getElementById('status').textContent")
    assert browser.problems == []


def test_the_page_may_load_nothing(browser: Browser, runs: dict[int, Path]) -> None:
    browser.open(page(runs[2]))
    browser.run("fetch('http://127.0.0.1:9/').catch(() => 0)")
    assert "Content Security Policy" in " ".join(browser.problems)


def test_touch_on_a_phone_in_the_dark(browser: Browser, runs: dict[int, Path]) -> None:
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", features=[dark])
    browser.open(page(runs[20]), 390, 844, phone=True)
    browser.run("document.getElementById('reset').click()")
    x, y, _ = plane_at(browser, 0.3, 0.7)
    browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    x, y, coordinates = plane_at(browser, 0.7, 0.6)
    browser.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x, "y": y}])
    browser.settle()
    browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    run = Run(runs[20])
    z = run.plane.lift(torch.tensor([coordinates]))[0]
    assert (shown(browser, "decoded") - decoded(run, z)).abs().max() < 1 / 255
    assert browser.run("document.documentElement.scrollWidth") == 390  # nothing sticks out
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(20, 23, 28)"
    assert browser.problems == []
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_the_default_model_fits_a_frame_and_3_megabytes(
    browser: Browser, tmp_path: Path, record_property: Any
) -> None:
    images = torch.rand(200 + POINTS, 28, 28).mul(255).byte()
    images[200:] = 0
    images[200:, 4:24, 7:19] = torch.randint(0, 256, (POINTS, 20, 12), dtype=torch.uint8)
    folder = make_run(tmp_path / "full", 20, images=images, hidden_dim=400)
    assert draw(folder, ["explore"])[0].stat().st_size < 3e6
    browser.open(page(folder))
    for step in range(60):
        x, y, _ = plane_at(browser, 0.2 + step / 100, 0.5)
        browser.mouse("mouseMoved", x, y)
        browser.settle()
    frames = browser.run("vaebench.frames")
    record_property("frame_ms", statistics.median(frames))
    assert len(frames) >= 60
    # A quarter of a 60 Hz frame: the rest is the browser's own, and for slower machines.
    assert statistics.median(frames) < 4
    assert browser.problems == []


def test_other_decoders_are_refused(runs: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def convolutional(_: object) -> VAE:
        model = VAE((28, 28), (8,), 2)
        model.decoder = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Unflatten(1, (2, 2, 2)))
        return model

    monkeypatch.setattr("vaebench.plots.run.load", convolutional)
    with pytest.raises(InputError, match="this model's decoder holds Unflatten"):
        draw(runs[2], ["explore"])


def test_no_name_can_break_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 2)
    config = json.loads((run / "config.json").read_text())
    config["workload"] = "</script><script>alert(1)</script>"
    (run / "config.json").write_text(json.dumps(config))
    assert "<script>alert" not in draw(run, ["explore"])[0].read_text(encoding="utf-8")
