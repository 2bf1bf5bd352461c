"""Trackers of services, offline and without an account: what their own readers find. Skipped where not installed."""

from __future__ import annotations

import re
import sqlite3
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from flowmap.training import services

RECORDS = [(1, i, {"student/loss": 0.5 * i, "student/lr": 1e-3}) for i in range(3)]
pytestmark = pytest.mark.filterwarnings("default")  # of the services' own libraries


def sent(kind: Any, run: Path) -> None:
    """As a run does it: all on a thread of its own."""
    errors = list[BaseException]()

    def work() -> None:
        try:
            tracker = kind(run)
            for record in RECORDS:
                tracker.log(*record)
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


def test_wandb_is_offline_without_an_account(run: Path) -> None:
    pytest.importorskip("wandb")
    sent(services.Wandb, run)
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    assert file.stat().st_size > 0


def test_trackio_stays_on_this_machine(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(run / "trackio"))
    pytest.importorskip("trackio")
    sent(services.Trackio, run)
    assert [*(run / "trackio").glob("*.db")]


@pytest.mark.parametrize("name", ["Mlflow", "Trackio", "Wandb"])
def test_what_is_not_installed_is_named_with_its_extra(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name.lower(), None)
    with pytest.raises(ImportError, match=re.escape(f"pip install 'flowmap-distill[{name.lower()}]'")):
        getattr(services, name)(run)
