"""A row of another package: examples/flowmap-cogview4, found by its entry point."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from flowmap_diffusers import Diffusers, Row, rows
from flowmap_diffusers.rows import ROWS

from flowmap.path import Convention
from flowmap.testing import BACKBONE_CHECKS, check_backbone

EXAMPLE = Path(__file__).parents[2] / "examples" / "flowmap-cogview4"


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> Diffusers:
    """As if it was installed."""
    monkeypatch.syspath_prepend(EXAMPLE)
    row = importlib.import_module("flowmap_cogview4").ROW
    monkeypatch.setattr(rows, "ROWS", {**ROWS, "cogview4": row})
    return Diffusers(family="cogview4")


def test_it_takes_at_most_thirty_lines_with_its_packaging() -> None:
    files = [path for path in EXAMPLE.iterdir() if path.is_file()]
    assert len(files) == 2 and sum(len(path.read_text().splitlines()) for path in files) <= 30


def test_it_passes_the_kit(spec: Diffusers) -> None:
    results = check_backbone(spec)
    assert {(r.check, r.message) for r in results if r.outcome == "failed"} == set()
    named = {r.check for r in results if r.outcome == "passed"}
    assert {"the_sampler_ends_at_the_one_point", "u_is_the_network_as_its_sampler_calls_it"} <= named


def test_the_tutorial_is_the_example() -> None:
    text = (EXAMPLE.parents[1] / "docs" / "backbones.md").read_text()
    for path in EXAMPLE.iterdir():
        assert path.is_dir() or path.read_text().strip() in text, path.name


@pytest.mark.parametrize(
    "changes, failed",
    [
        ({"convention": Convention(1000.0, predicts="x-ε")}, "the_sampler_ends_at_the_one_point"),
        ({"vae": (1, 16)}, "u_is_the_network_as_its_sampler_calls_it"),
    ],
)
def test_a_mistake_is_a_named_check(
    spec: Diffusers, changes: Any, failed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "ROWS", {**ROWS, "cogview4": evolve(spec.row, **changes)})
    check = next(check for check in BACKBONE_CHECKS if check.__name__ == f"check_{failed}")
    with pytest.raises(AssertionError):
        check(spec)


class Entry:
    """An entry point."""

    def __init__(self, name: str, row: object) -> None:
        self.name, self.value, self.row = name, "its_module:ROW", row

    def load(self) -> object:
        return self.row


def test_what_is_no_row_or_there_already_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(entry: Entry) -> Any:
        monkeypatch.setattr(rows.metadata, "entry_points", lambda group: [entry])
        return rows.collected()

    assert isinstance(found(Entry("mine", ROWS["ltx"]))["mine"], Row)
    with pytest.raises(ValueError, match="the row 'ltx' of its_module:ROW is there already: give it another name"):
        found(Entry("ltx", ROWS["ltx"]))
    with pytest.raises(TypeError, match=r"the row 'mine' \(its_module:ROW\) is a dict: must be a Row"):
        found(Entry("mine", {}))


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="pip can only build it here with hatchling")
def test_installed_it_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", site, source], check=True)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    code = "import flowmap_cogview4; from flowmap import backbone; print(backbone('cogview4').family)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout == "cogview4\n"
