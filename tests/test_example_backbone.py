"""examples/flowmap-sd3: somebody else's backbone, in a distribution of its own, nothing of flowmap changed."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowmap import Recipe, Stage, TensorData, distill, sample
from flowmap.methods import anyflow
from flowmap.plugins import backbone, manager
from flowmap.testing import BACKBONE_CHECKS

EXAMPLE = Path(__file__).parents[1] / "examples" / "flowmap-sd3"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """As if installed, here and in subprocesses."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLE), prepend=os.pathsep)


@pytest.fixture
def spec():
    plugin = importlib.import_module("flowmap_sd3")
    return backbone("sd3_tiny", manager(plugin, entry_points=False))


def test_it_takes_at_most_a_hundred_lines():
    assert sum(len(path.read_text().splitlines()) for path in EXAMPLE.rglob("*.py")) <= 100


@pytest.mark.parametrize("check", BACKBONE_CHECKS, ids=lambda check: check.__name__)
def test_conformance(spec, check):
    check(spec)


def test_the_fresh_student_is_the_teacher_bit_for_bit(spec):
    nets = spec.build(frozenset({"student", "teacher"}), device=CPU, dtype=torch.float32)
    z, cond = spec.example(3)
    t = torch.tensor([1.0, 0.6, 0.1])
    assert torch.equal(nets["student"](z, t, t, cond), nets["teacher"](z, t, t, cond))


def test_it_is_distilled_by_both_stages(spec, tmp_path):
    x, cond = spec.example(8)
    stages = (Stage(anyflow.forward(), steps=2, batch=4), Stage(anyflow.on_policy(), steps=2, batch=4))
    student = distill(Recipe(spec, stages, data=TensorData(x, cond, spec.null(cond))), out=tmp_path, device=CPU)
    fresh = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    loaded = spec.load(tmp_path / "student", device=CPU, dtype=torch.float32)
    ours, others, untrained = (sample(u, x, cond, steps=4, shift=3.0) for u in (student, loaded, fresh))
    assert ours.shape == x.shape and ours.isfinite().all()
    assert torch.equal(ours, others)
    assert not torch.equal(ours, untrained)


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="pip can only build it here with hatchling")
def test_installed_it_is_found_by_its_entry_point(tmp_path, monkeypatch):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", site, source], check=True)
    monkeypatch.setenv("PYTHONPATH", str(site))
    code = "import flowmap_sd3; from flowmap import backbone; print(flowmap_sd3.__file__, backbone('sd3_tiny'))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout.startswith(f"{site / 'flowmap_sd3'}") and "SD3(path=None" in run.stdout
