"""The page in a real browser: its players play in step, its slider shows what it says, and nothing complains."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from flowmap import report
from tests.report import made

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
WHY = "there is no chromium with its driver here: apt-get install chromium chromium-driver"
pytestmark = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=WHY)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync", "--hide-scrollbars"),
)
WATCH = """<script>
window.wrong = [];
window.onerror = (text) => { wrong.push(String(text)); };
window.addEventListener("unhandledrejection", (e) => wrong.push(String(e.reason)));
console.error = console.warn = (...told) => { wrong.push(told.join(" ")); };
new PerformanceObserver((l) => l.getEntries().forEach((e) => e.name.startsWith("data:") || wrong.push(e.name)))
  .observe({ type: "resource", buffered: true });
</script>"""
DRIVE = """<script>
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const seen = (canvas) => ({
  model: canvas.dataset.model, prompt: +canvas.dataset.prompt, shows: canvas.dataset.shows,
  frame: +canvas.dataset.frame,
  hidden: canvas.closest("figure").hidden, label: canvas.nextElementSibling.textContent,
  grey: canvas.getContext("2d").getImageData(3, 3, 1, 1).data[0], wide: canvas.getBoundingClientRect().width,
});
const all = () => [...document.querySelectorAll("canvas")].map(seen);
const move = (id, value) => { const one = document.getElementById(id); one.value = value;
  one.dispatchEvent(new Event("input")); };
(async () => {
  const found = { steps: [], frames: [] };
  for (let k = 0; k < 200 && !document.querySelector(".player").dataset.ready; k++) await pause(50);
  for (let k = 0; k < 12; k++) { found.frames.push(all().map((one) => one.frame)); await pause(60); }
  document.getElementById("play").click();
  found.button = document.getElementById("play").textContent;
  const stopped = all()[0].frame; await pause(300); found.stands = all()[0].frame === stopped;
  move("frame", 3);
  for (let k = 0; k <= +document.getElementById("steps").max; k++) {
    move("steps", k);
    found.steps.push({ told: document.getElementById("told").textContent, cells: all() });
  }
  document.getElementById("more").click();
  found.more = all();
  const shown = () => [...document.querySelectorAll(".course figure")].map((one) => !one.hidden);
  found.course = [shown()]; move("course", 0); found.course.push(shown());
  found.width = document.documentElement.scrollWidth; found.room = window.innerWidth; found.wrong = wrong;
  const out = document.createElement("pre"); out.id = "found"; out.textContent = JSON.stringify(found);
  document.body.append(out);
})();
</script>"""


class Browser:
    """A chromium that chromedriver drives, by the protocol of WebDriver: in real time, for players need that."""

    def __init__(self, folder: Path, width: int) -> None:
        self.driver = subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, text=True)
        self.arguments = [*QUIET, f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}"]

    def __enter__(self) -> Browser:
        assert self.driver.stdout is not None
        try:
            port = next(
                found[1]
                for line in self.driver.stdout
                if (found := re.search(r"started successfully on port (\d+)", line))
            )
            self.place = f"http://127.0.0.1:{port}/session"
            options = {"binary": str(CHROMIUM), "args": self.arguments}
            asked = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            self.place += f"/{self.ask('', {'capabilities': {'alwaysMatch': asked}})['sessionId']}"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self.ask("", method="DELETE")
        self.driver.terminate()
        self.driver.communicate()

    def ask(self, what: str, told: dict[str, Any] | None = None, method: str = "POST") -> Any:
        data = None if told is None else json.dumps(told).encode()
        request = Request(self.place + what, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())["value"]
        except HTTPError as error:
            raise OSError(error.read().decode()) from None


@pytest.fixture(scope="module", params=[1280, 500], ids=["desktop", "phone"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a script of the test sees that moves every slider. 500 is the narrowest window that chromium makes."""
    folder = tmp_path_factory.mktemp("browser")
    page = report.write(made.run(folder / "run")).read_text()
    driven = page.replace("<style>", f"{WATCH}<style>", 1).replace("</body>", f"{DRIVE}</body>", 1)
    (folder / "driven.html").write_text(driven)
    with Browser(folder, request.param) as browser:
        browser.ask("/url", {"url": (folder / "driven.html").as_uri()})
        for _ in range(200):
            script = "return document.getElementById('found')?.textContent"
            if told := browser.ask("/execute/sync", {"script": script, "args": []}):
                break
            time.sleep(0.1)
        result: dict[str, Any] = json.loads(told)
        said = [entry["message"] for entry in browser.ask("/se/log", {"type": "browser"})]
        result["wrong"] += [one for one in said if "getImageData" not in one]  # the test's own reading
    return result


def test_nothing_complains_and_nothing_is_fetched(found: dict[str, Any]) -> None:
    assert found["wrong"] == []


def test_nothing_sticks_out(found: dict[str, Any]) -> None:
    assert found["width"] <= found["room"]
    assert all(cell["wide"] > 90 for cell in found["steps"][0]["cells"] if not cell["hidden"])


def test_all_clips_show_the_same_frame_and_go_on(found: dict[str, Any]) -> None:
    shown = [{frame for frame in frames if frame is not None} for frames in found["frames"]]
    assert all(len(one) == 1 for one in shown), found["frames"]
    assert len({min(one) for one in shown}) > 2


def test_it_can_be_stopped(found: dict[str, Any]) -> None:
    assert found["button"] == "Play" and found["stands"]


def test_the_slider_shows_every_model_at_that_number_of_steps(found: dict[str, Any]) -> None:
    """By the shade of the frame that was asked for, which no other clip and no other frame has."""
    assert [one["told"] for one in found["steps"]] == ["1 step", "2 steps", "4 steps", "8 steps"]
    clips = {(point.model, point.sampler, point.steps): clip for point, clip in made.points().items()}
    for n, one in zip(made.STEPS, found["steps"], strict=True):
        models = []
        for cell in (cell for cell in one["cells"] if not cell["hidden"]):
            model, _, steps = cell["shows"].partition("/")
            key = (model, "euler" if model == "teacher" else "flow_map", int(steps))
            assert abs(cell["grey"] - 255 * float(clips[key][cell["prompt"], 3, 0, 0, 0])) < 1
            models.append((cell["prompt"], cell["label"], int(steps)))
        assert models == [
            (k, label, steps)
            for k in range(2)
            for label, steps in (
                (f"teacher, {2 * n} calls", n),
                (f"student, {n} call{'s' * (n > 1)}", n),
                ("teacher at 50 steps", 50),
            )
        ]


def test_the_re_noised_ones_are_shown_where_asked(found: dict[str, Any]) -> None:
    assert sum(cell["hidden"] for cell in found["steps"][0]["cells"]) == 2
    more = [cell for cell in found["more"] if cell["model"] == "student, re-noised"]
    assert (
        len(more) == 2
        and not any(cell["hidden"] for cell in more)
        and {cell["shows"] for cell in more} == {"student, re-noised/8"}
    )


def test_the_course_of_training_shows_one_preview_at_a_time(found: dict[str, Any]) -> None:
    assert found["course"] == [[False, True], [True, False]]
