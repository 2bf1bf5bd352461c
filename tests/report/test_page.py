"""The page of a run: what it says, and that it holds all of it."""

from __future__ import annotations

import io
import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from PIL import Image

from flowmap import report
from flowmap.atomic import write_json
from flowmap.cli import main
from flowmap.evaluation import album
from flowmap.report import sections
from flowmap.report.chart import Line, Scale, chart
from flowmap.report.facts import Facts
from flowmap.training.run import environment
from flowmap.training.store import health
from tests.evaluation.seen import STEADY
from tests.report import made


class Parsed(HTMLParser):
    """Tags in order, and the text between."""

    VOID = frozenset(("meta", "link", "input", "img", "br"))

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def album_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script id="album" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    told: dict[str, Any] = json.loads(found[1])
    return told


def pixels(data: str) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(b64decode(data.removeprefix("data:image/webp;base64,")))) as picture:
        return np.array(picture.convert("RGB"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    assert report.write(run) == run / "index.html"
    return (run / "index.html").read_text()


def test_it_fetches_nothing(page: str) -> None:
    assert not re.search(r"""https?:|//[a-z]|url\(|@import|\bfetch\(|XMLHttp|WebSocket|import\(""", page)
    for tag, attributes in Parsed(page).tags:
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)  # type: ignore[union-attr]


def test_every_place_of_the_slider_has_a_picture_of_every_model_and_prompt(page: str) -> None:
    told, tags = album_of(page), Parsed(page).tags
    slider = next(a for _, a in tags if a.get("id") == "steps")
    assert (slider["min"], slider["max"]) == ("0", str(len(made.STEPS) - 1))
    assert told["steps"] == [*made.STEPS]
    canvases = [a for tag, a in tags if tag == "canvas"]
    assert len(canvases) == 2 * 4  # teacher, student, re-noised, and the teacher at 50
    for canvas in canvases:
        for n in [int(canvas["data-steps"])] if "data-steps" in canvas else told["steps"]:  # type: ignore[arg-type]
            files = told["clips"][f"{canvas['data-model']}/{n}"]
            picture = pixels(told["files"][files[int(canvas["data-prompt"] or "")]])
            rows = -(-told["frames"] // told["columns"])
            assert picture.shape == (rows * told["height"], told["columns"] * told["width"], 3)
    assert {a.get("data-steps") for a in canvases} == {None, "50"}


def test_a_picture_has_the_clip_s_frames_where_the_script_looks_for_them(page: str) -> None:
    told = album_of(page)
    (student, second) = told["clips"]["student/4"]
    for file, k in ((student, 0), (second, 1)):
        picture, clip = pixels(told["files"][file]), made.clips(0.3)[k]
        for frame in range(made.FRAMES):
            y, x = divmod(frame, told["columns"])
            part = picture[y * 8 : y * 8 + 8, x * 12 : x * 12 + 12]
            assert abs(part.astype(float) - 255 * float(clip[frame, 0, 0, 0])).max() < 1


def test_what_users_wrote_is_text(page: str) -> None:
    """Prompts and names are no tags."""
    assert '<b>red</b> ball & "a" cube' in Parsed(page).text
    assert "<b>red" not in page


def test_rows_of_a_prompt_that_is_shown_twice_are_told_apart(tmp_path: Path) -> None:
    made.run(tmp_path)
    file = tmp_path / "samples" / "album.json"
    told = json.loads(file.read_text())
    write_json(file, told | {"prompts": ["a cube"] * len(told["prompts"])})
    page = report.write(tmp_path).read_text()
    rows = re.findall(r'<div class="prompt">(.*?)</div>', page)
    assert rows == ["a cube", *(f"a cube, sample {k}" for k in range(2, len(told["prompts"]) + 1))] and len(rows) > 1


def test_it_says_how_it_went(page: str) -> None:
    text = Parsed(page).text
    for said in ("finished", "11 of 11", "anyflow_forward", "anyflow_on_policy"):
        assert said in text
    assert "no alarm after 5 iterations of stage 1, at 4 steps" in text
    assert "Training so far on one CPU: 33 s; to come: none" in text and "1.5 GiB" in text
    assert (
        "3 seeds of 32 samples, on the prompts of the recipe's evaluation" in text
        and "sampled as consistency models are" in text
        and "real clips" in text
    )
    assert "clips/x" in text and "/home/me" not in page
    assert "A trial of 11 iterations" in text


def rewritten(run: Path, change: Any) -> Path:
    """With other records of training."""
    file = run / "metrics.jsonl"
    records = [change(json.loads(line)) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(one) + "\n" for one in records if one))
    return run


def test_the_time_of_a_trial_is_told(tmp_path: Path) -> None:
    """One record a stage says how long its iteration took: samples a second, of the whole batch."""

    def one(record: dict[str, Any]) -> dict[str, Any] | None:
        batch = STEADY.stages[record["stage"]].batch
        return None if record["iteration"] else {**record, "samples_per_second": batch / 40.0}

    rewritten(made.run(tmp_path), one)
    assert [cost.pace for cost in Facts.read(tmp_path).costs()] == pytest.approx([40.0, 40.0])
    assert "Training so far on one CPU: 7.33 min; to come: none" in Parsed(report.write(tmp_path).read_text()).text


def test_time_between_two_starts_is_not_training(tmp_path: Path) -> None:
    """The clock says a day, records what was worked; what is to come goes by the usual pace."""

    def later(record: dict[str, Any]) -> dict[str, Any]:
        stage, k = record["stage"], record["iteration"]
        seconds = 3600.0 * (3 if k == 0 else 1)  # the first is slow
        rate = STEADY.stages[stage].batch / seconds
        return {**record, "time": record["time"] + 86400.0 * (k > 2), "samples_per_second": rate}

    rewritten(made.run(tmp_path, state="running"), later)
    write_json(tmp_path / "env.json", {**environment(), "cuda": "H100", "processes": 4})
    status = json.loads((tmp_path / "status.json").read_text())
    times = {"step": 3, "started": "2026-01-02T03:00:00+0000", "updated": 1767322800.0 + 3600.0}
    write_json(tmp_path / "status.json", {**status, **times})
    (first, second) = Facts.read(tmp_path).costs()
    assert (first.spent, second.pace, second.to_come) == pytest.approx((8 * 3600.0, 3600.0, 2 * 3600.0))
    text = Parsed(report.write(tmp_path).read_text()).text
    assert "on 4 GPUs: 15 h (60 GPU-hours); to come: 2 h (8 GPU-hours)" in text
    assert "From the last start to the last sign of life: 60 min" in text
    assert sections.times(Facts.read(tmp_path)) == "15 h (60 GPU-hours) so far, 2 h (8 GPU-hours) to come"


def test_one_is_not_spoken_of_as_several(tmp_path: Path) -> None:
    made.run(tmp_path)
    file = tmp_path / "evaluation" / "manifest.json"
    write_json(file, {**json.loads(file.read_text()), "samples_per_seed": 1, "seeds": [0]})
    health = tmp_path / "health.jsonl"
    health.write_text(health.read_text().replace('"done": 5', '"done": 1').replace('"done": 6', '"done": 1'))
    text = Parsed(report.write(tmp_path).read_text()).text
    assert "1 seed of 1 sample, on" in text and "after 1 iteration of stage 1" in text and "Bands" not in text
    assert not re.search(r"\b1 (iterations|seeds|samples|steps)\b", text)


def test_iterations_are_whole_numbers() -> None:
    drawn = chart([Line("a", [(1, 2.0), (2, 3.0)])], x="iterations", whole=True)
    assert re.findall(r'y="196.0"[^>]*>([^<]+)', drawn) == ["1", "2"]


def test_an_alarm_is_said(tmp_path: Path) -> None:
    text = Parsed(report.write(made.run(tmp_path, alarms=True)).read_text()).text
    said = "samples are 1.62 × as saturated as the teacher's (alarm above 1.4)"
    assert f"1 alarm after 5 iterations of stage 1, at 4 steps: {said}" in text
    assert f"anyflow_forward, after 6 iterations: {said}" in text and "No alarm" not in text


def test_few_samples_are_said_to_mean_nothing(run: Path, tmp_path: Path) -> None:
    made.run(tmp_path)
    file = tmp_path / "evaluation" / "manifest.json"
    write_json(file, {**json.loads(file.read_text()), "samples_per_seed": 4})
    said = "With 4 samples a seed these numbers say that evaluation works, and nothing else."
    assert said in report.write(tmp_path).read_text()
    assert "With 32 samples" not in report.write(run).read_text()


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    """With what there is of it: no clips, no records, no evaluation; and after an error, with the reason."""
    made.run(tmp_path, state="running")
    for name in ("samples", "previews", "evaluation"):
        for file in sorted((tmp_path / name).rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    for name in ("metrics.jsonl", "health.jsonl", "env.json"):
        (tmp_path / name).unlink()
    status = json.loads((tmp_path / "status.json").read_text())
    failed = {"stage": 0, "step": 2, "state": "failed", "reason": "OSError: <full>"}
    write_json(tmp_path / "status.json", {**status, **failed})
    page = report.write(tmp_path).read_text()
    text = Parsed(page).text
    assert "failed" in text and "OSError: <full>" in text and "2 of 11" in text
    assert "not known before it starts" in text and "to come: at least 0 s" in text
    assert "<canvas" not in page and "Losses" not in text and "Health" not in text


def test_the_newest_previews_are_played_where_nothing_was_judged(tmp_path: Path) -> None:
    made.run(tmp_path)
    (tmp_path / "samples" / "album.json").unlink()
    told = album_of(report.write(tmp_path).read_text())
    assert {*told["clips"]} == {f"{model}/{n}" for model in ("teacher", "student") for n in made.STEPS} | {"teacher/50"}


def test_clips_of_true_size_are_made_small(tmp_path: Path) -> None:
    album.write(made.large(9), ["one"], tmp_path, 16.0)
    told = json.loads((tmp_path / "album.json").read_text())
    assert (told["height"], told["width"], told["frames"], told["rate"]) == (185, 320, 9, 16.0)
    with Image.open(tmp_path / told["clips"][0]["files"][0]) as picture:
        assert picture.size == (3 * 320, 3 * 185)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1_000_000


def test_a_long_clip_leaves_out_frames_and_keeps_its_speed(tmp_path: Path) -> None:
    long = {point: video.repeat(1, 40, 1, 1, 1) for point, video in made.points().items() if point.steps == 4}
    album.write(long, made.PROMPTS, tmp_path, 24.0)
    told = json.loads((tmp_path / "album.json").read_text())
    assert (told["frames"], told["rate"]) == (80, 8.0)


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "x" / "run.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'x' / 'run.html'}\n"
    assert (tmp_path / "x" / "run.html").read_text().startswith("<!doctype html>")
    for given, said in (
        (["report", str(tmp_path / "no")], "there is no such directory"),
        (["report", str(tmp_path)], "there is no status.json in it, so it is no run directory"),
        (["report", str(run), "--out", str(tmp_path)], "is a directory: name a file, such as"),
    ):
        assert main(given) == 2
        assert said in capsys.readouterr().err


def test_status_says_health_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.run(tmp_path, alarms=True)
    assert main(["status", str(tmp_path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("health:")]
    assert line.split(None, 1)[1] == (
        "1 alarm after 5 iterations of stage 1, at 4 steps: samples are 1.62 × as saturated as the teacher's "
        "(alarm above 1.4)"
    )
    (tmp_path / health.HEALTH).write_text('{"stage": 0, "iteration": 3, "values": {}}\n{"torn')
    assert health.line(tmp_path) is None


def test_axes_have_round_numbers_apart_from_each_other() -> None:
    assert Scale(0.0, 340.0, 0.0, 300.0).ticks(44.0) == [0, 50, 100, 150, 200, 250, 300]
    log = Scale(0.02, 55.0, 184.0, 8.0, np.log)
    assert {0.1, 1.0, 10.0} <= {*log.ticks(20.0)}
    away = Scale(-0.05, 0.6, 184.0, 8.0, lambda y: float(np.arcsinh(y / 0.05)))
    for scale in (log, away, Scale(-0.05, 0.6, 184.0, 8.0)):
        places = sorted(scale.at(value) for value in scale.ticks(20.0))
        assert len(places) > 3 and min(np.diff(places)) >= 19.9


NUMBERS = [(1.0, 1.0), (0.0, 0.0), (-1.0, 2.0), (0.001, 5000.0), (-0.01, 0.6), (1e-9, 1e9), (3.0,)]


@pytest.mark.parametrize("values", NUMBERS)
def test_any_numbers_can_be_drawn(values: tuple[float, ...]) -> None:
    drawn = chart([Line("a", [*enumerate(values, 1)], "a", [0.0] * len(values))], x="steps", log_x=True)
    places = [float(number) for number in re.findall(r'c[xy]="([-\d.]+)"', drawn)]
    assert len(places) == 2 * len(values) and all(-1 <= place <= 361 for place in places) and "nan" not in drawn
    assert chart([], x="steps") == ""
    assert evolve(Line("a", []), name="b").name == "b"
