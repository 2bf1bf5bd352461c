"""R19: a checkpoint of every release so far is gone on from, with the losses that its own release had."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from flowmap import __version__
from flowmap.training.store.checkpoint import CheckpointError, published
from flowmap.training.store.manifest import Manifest
from tests import runs
from tests.fault.make_golden import GOLDEN, run

pytestmark = pytest.mark.row("R19")
RELEASES = sorted(path.name for path in GOLDEN.iterdir())
CLOSE = 1e-5  # relative: another torch rounds otherwise


def test_this_release_has_its_own() -> None:
    assert __version__ in RELEASES


def placed(release: str, out: Path) -> Path:
    """The golden checkpoint as the newest of a run."""
    (golden,) = (path for path in (GOLDEN / release).iterdir() if path.is_dir())
    return Path(shutil.copytree(golden, out / "checkpoints" / golden.name))


@pytest.mark.parametrize("release", RELEASES)
def test_it_goes_on_with_the_same_losses(release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New fields change the digest of a recipe, which is another matter: it is taken from the checkpoint."""
    said = Manifest.read(placed(release, tmp_path))
    for name in ("flowmap.distill", "flowmap.resume"):
        monkeypatch.setattr(sys.modules[name], "digest", lambda recipe: said.digest)
    found = run(tmp_path)
    expected = json.loads((GOLDEN / release / "record.json").read_text())
    assert found.keys() >= expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=CLOSE, abs=1e-8), name
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2  # the first and the last of stage 1: it did go on, and not start again
    assert runs.status(tmp_path)["state"] == "finished"


def test_the_losses_would_show_another_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads((GOLDEN / __version__ / "record.json").read_text())
    monkeypatch.setattr("flowmap.training.store.checkpoint.restore_trainer", lambda found, trainer: None)
    said = Manifest.read(placed(__version__, tmp_path))
    for name in ("flowmap.distill", "flowmap.resume"):
        monkeypatch.setattr(sys.modules[name], "digest", lambda recipe: said.digest)
    found = run(tmp_path)
    assert any(found[name] != pytest.approx(value, rel=CLOSE, abs=1e-8) for name, value in expected.items())


def test_a_newer_schema_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    checkpoint = placed(__version__, tmp_path)
    said = Manifest.read(checkpoint)
    newer = Manifest(said.files, said.shapes, said.digest, said.world, said.versions, schema=said.schema + 1)
    newer.write(checkpoint)
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    with pytest.raises(
        CheckpointError, match=r"is of schema 2, this version reads 1; it was written by a newer flowmap"
    ):
        run(tmp_path)
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == before
    assert published(tmp_path / "checkpoints") == [checkpoint]
    assert not (tmp_path / "status.json").exists()
