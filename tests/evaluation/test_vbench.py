"""VBench's results in a student's card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowmap import Recipe, Stage, distill
from flowmap.cli import main
from flowmap.evaluation import card
from flowmap.methods import anyflow
from flowmap.plugins import manager
from tests.toys import Toy, data

RECIPE = Recipe(Toy(), (Stage(anyflow.forward(), 1, batch=4),), data=data())
ROW = "| subject consistency | 0.9512 | 2 |"


def results(path: Path, score: float) -> Path:
    """As vbench 0.1.5 writes them."""
    each = [{"video_path": f"videos/a seven-{i}.mp4", "video_results": score} for i in range(2)]
    path.write_text(json.dumps({"subject_consistency": [score, each], "dynamic_degree": [0.5, each[:1]]}, indent=4))
    return path


def test_a_table_goes_into_the_card_and_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    distill(RECIPE, out=run, device="cpu", pm=manager(entry_points=False))
    file, before = run / "student" / "README.md", (run / "student" / "README.md").read_text()
    given = results(tmp_path / "a_eval_results.json", 0.95123)
    assert main(["report", str(run), "--vbench", str(given)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(file), str(run / "index.html")]
    once = file.read_text()
    assert ROW in once and "| dynamic degree | 0.5000 | 1 |" in once
    assert once.index("## VBench") < once.index("## Citations")
    start, end = once.index("## VBench"), once.index("## Citations")
    assert once[:start] + once[end:] == before
    card.write(RECIPE, run)
    assert file.read_text() == once
    assert main(["report", str(run), "--vbench", str(results(given, 0.25))]) == 0
    again = file.read_text()
    assert again.count("## VBench") == 1 and ROW not in again and again.count("## Citations") == 1
    assert again == once.replace("0.9512", "0.2500")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "must be {dimension"),
        ({}, "must be {dimension"),
        ({"color": 0.5}, "'color' must be [score, [one a video]]"),
        ({"color": [float("nan"), []]}, "with a finite score"),
        ({"color": [True, []]}, "with a finite score"),
        ({"color": [0.5, []]}, "there is no card in it"),
    ],
)
def test_what_is_none_of_vbench_s_is_refused(
    found: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x_eval_results.json"
    file.write_text(json.dumps(found))
    assert main(["report", str(tmp_path), "--vbench", str(file)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "evaluation").exists()
