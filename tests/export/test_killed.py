"""R20: an export that is killed is not there, and the next one is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import flowmap

ROOT = Path(__file__).parents[2]
CODE = """
import flowmap
from tests.export.students import FIXED, student
flowmap.export(student("fixed")[0], "torch-export", "OUT", sizes={**FIXED.dims}, rollouts=(1,))
"""


def run(out: Path, fault: str = "") -> int:
    return subprocess.run(
        [sys.executable, "-c", CODE.replace("OUT", str(out))],
        env={**os.environ, "FLOWMAP_FAULT": fault},
        cwd=ROOT,
        capture_output=True,
    ).returncode


@pytest.mark.parametrize("point, there", [("export.built", False), ("publish.before", False), ("publish.after", True)])
def test_killed(point: str, there: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, point) == -signal.SIGKILL
    assert out.exists() == there
    if not there:
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".tmp-out-")
        assert (left / "manifest.json").exists() == (point == "publish.before")
        assert run(out) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    flowmap.export.load(out)
