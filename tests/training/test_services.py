"""Trackers of services, offline and without an account: what their own readers find. Skipped where not installed."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from flowmap.evaluation import previews
from flowmap.evaluation.records import Point
from flowmap.training import services

RECORDS = [(1, i, {"student/loss": 0.5 * i, "student/lr": 1e-3}) for i in range(3)]
pytestmark = pytest.mark.filterwarnings("default")  # of the services' own libraries


def seen(run: Path) -> dict[str, Path]:
    """Previews as a run has them."""
    videos = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    shown = {Point("teacher", "euler", 2, 4): videos, Point("student", "flow_map", 2, 2): 1 - videos}
    for name in ("grid.png", "grid.mp4"):
        previews.write_beside(shown, ["a seven", "a two"], run / name)
    (run / "prompts.txt").write_text("a seven\na two\n")
    return {"moving": run / "grid.mp4", "teacher and student": run / "grid.png", "prompts": run / "prompts.txt"}


def same(stored: Path, file: Path) -> bool:
    """Whether a folder has a file's very bytes under any name."""
    return any(one.is_file() and one.read_bytes() == file.read_bytes() for one in stored.rglob(f"*{file.suffix}"))


def sent(kind: Any, run: Path) -> None:
    """As a run does it: all on a thread of its own."""
    errors = list[BaseException]()

    def work() -> None:
        try:
            tracker = kind(run)
            for record in RECORDS:
                tracker.log(*record)
            tracker.show(1, 2, seen(run))
            tracker.close()
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=work)
    thread.start()
    thread.join(120)
    assert not thread.is_alive() and not errors, errors


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "recipe.json").write_text('{"seed": 3}')
    return tmp_path


def test_mlflow_has_every_value_at_its_iteration(run: Path) -> None:
    pytest.importorskip("mlflow")
    sent(services.Mlflow, run)
    with sqlite3.connect(run / services.FILE) as file:
        found = file.execute("select step, value from metrics where key = 'stage 1/student/loss' order by step")
        assert found.fetchall() == [(0, 0.0), (1, 0.5), (2, 1.0)]
        (place,) = file.execute("select artifact_uri from runs").fetchone()
    assert place.startswith((run / services.ARTIFACTS).as_uri())  # not where the command was given
    kept = Path(place.removeprefix("file://")) / "stage 1" / "00000002"
    assert {one.name: one.read_bytes() for one in kept.iterdir()} == {
        name: (run / name).read_bytes() for name in ("grid.mp4", "grid.png", "prompts.txt")
    }


def test_wandb_is_offline_without_an_account(run: Path) -> None:
    pytest.importorskip("wandb")
    sent(services.Wandb, run)
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    assert file.stat().st_size > 0
    media = file.parent / "files" / "media"
    assert same(media, run / "grid.mp4") and [*media.rglob("*.png")]
    (table,) = media.rglob("*.table.json")
    assert json.loads(table.read_text())["data"] == [["a seven"], ["a two"]]


def test_trackio_stays_on_this_machine(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(run / "trackio"))
    pytest.importorskip("trackio")
    sent(services.Trackio, run)
    (base,) = (run / "trackio").glob("*.db")
    with sqlite3.connect(base) as file:
        told = " ".join(str(row) for row in file.execute("select metrics from metrics"))
    assert "a seven" in told
    media = run / "trackio" / "media"
    assert same(media, run / "grid.mp4") and [*media.rglob("*.png")]


@pytest.mark.parametrize("name", ["Mlflow", "Trackio", "Wandb"])
def test_what_is_not_installed_is_named_with_its_extra(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name.lower(), None)
    with pytest.raises(ImportError, match=re.escape(f"pip install 'flowmap-distill[{name.lower()}]'")):
        getattr(services, name)(run)
