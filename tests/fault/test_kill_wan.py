"""R1 on the command line: the small Wan network, LoRA and a shared base, killed in the middle of stage 2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flowmap import distill
from flowmap.cli import recipes
from flowmap.training.store import status

RECIPE = """
from flowmap import AdamW, Ema, Recipe, Stage, TensorData
from flowmap.methods import anyflow
from flowmap.plugins import backbone

spec = backbone("wan21").tiny()
x, cond = spec.example(4)
data = TensorData(x, dict(cond), {"text": 0 * cond["text"][:1]})
lr = AdamW(lr=1e-3)
stages = (
    Stage(anyflow.forward(), 2, batch=2, micro=1, optimizer=lr, ema=Ema(0.5, start=0)),
    Stage(anyflow.on_policy(steps=(2,)), 3, batch=2, micro=1, optimizer=lr, ema=Ema(0.5, start=0)),
)
RECIPE = Recipe(spec, stages, data=data, name="tiny")
"""


def flowmap(here: Path, *arguments: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    (here / "tiny.py").write_text(RECIPE)
    command = [sys.executable, "-m", "flowmap", *arguments]
    env = {**os.environ, "FLOWMAP_FAULT": fault, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, env=env, cwd=here, text=True, capture_output=True, timeout=280)


@pytest.mark.row("R1")
def test_a_kill_in_stage_2_is_not_to_be_seen(tmp_path: Path) -> None:
    end = flowmap(tmp_path, "distill", "tiny.py", "--out", "parts", fault="critic.after:2")
    assert end.returncode == -signal.SIGKILL, end.stderr
    assert status.lines(tmp_path / "parts")["state"].startswith("killed?")
    end = flowmap(tmp_path, "distill", "tiny.py", "--out", "parts")
    assert end.returncode == 0, end.stderr
    distill(recipes.load(str(tmp_path / "tiny.py")), out=tmp_path / "whole", device="cpu")
    ended = status.lines(tmp_path / "whole")["hash"]
    assert len(ended) == 64 and status.lines(tmp_path / "parts")["hash"] == ended
