"""Students for a fixed number of steps, in the teacher's own classes, through the real pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import flowmap_diffusers
import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_diffusers.rows import ROWS
from flowmap_lora import Lora

import flowmap
from flowmap import FlowMap, Rng
from flowmap.export.errors import ExportError
from flowmap.plugins import PluginError, backbone, manager
from flowmap.rollout import walk
from flowmap.testing.kit_helpers import perturb

from .test_directories import CASES, made

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
PLUGINS = manager(flowmap_diffusers, entry_points=False)
QUICK = "sana_video"
FAMILIES = [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
STEPS = (1, 4, 8)


def trained(family: str, path: Path) -> tuple[Diffusers, FlowMap]:
    """A student of a pipeline at toy size, moved off the teacher, both embedders too."""
    spec = backbone(str(made(family, path / "base")), PLUGINS)
    assert isinstance(spec, Diffusers)
    spec = evolve(spec, lora=Lora(rank=4, alpha=8.0), guidance=6.0)
    u = spec.build(frozenset({"student"}), **CPU)["student"]
    perturb(u, 0, 0.1)
    spec.save(u, path / "student")
    return spec, u


def off(pipe: Any, u: FlowMap, family: str, folder: Path) -> float:
    """How far the pipeline's latents are from those of the student at the times of the manifest."""
    row, manifest = ROWS[family], json.loads((folder / "manifest.json").read_text())
    times = manifest["sampler"]["times"]
    noise = Rng.seeded(3).noise_like(torch.zeros(1, *row.example["z"]))
    cond = backbone(str(folder.parent / "student"), PLUGINS).codec(**CPU).encode_prompts(["seven"])
    with torch.no_grad():
        ours = walk(u, noise, cond, torch.tensor(times), None)
    pipe.set_progress_bar_config(disable=True)
    asked = {**CASES[family].size, **row.call({"guidance": torch.tensor([6.0])}, u.positions)}  # type: ignore[arg-type]
    asked |= {"num_inference_steps": len(times) - 1, "output_type": "latent", "return_dict": False}
    theirs = row.latents.back(pipe(prompt="seven", latents=row.latents.to(noise), **asked)[0], noise.shape)
    return float((theirs - ours).abs().max() / ours.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_s_own_pipeline_makes_what_the_student_does(family: str, tmp_path: Path) -> None:
    _, u = trained(family, tmp_path)
    row = ROWS[family]
    for steps in STEPS[family == "mochi" :]:
        folder = tmp_path / f"fixed{steps}"
        flowmap.export(tmp_path / "student", "fixed-steps", folder, options={"steps": steps})
        pipe = getattr(diffusers, row.pipeline).from_pretrained(folder)
        assert type(pipe.transformer).__name__ == row.transformer
        assert off(pipe, u, family, folder) < 1e-5, steps
    other = getattr(diffusers, row.pipeline).from_pretrained(tmp_path / "fixed8")
    assert off(other, u, family, tmp_path / "fixed4") > 1e-4, "another number of steps is another file"
    with pytest.raises(PluginError, match="is an export for 4 steps, which knows no others: give the student"):
        backbone(str(tmp_path / "fixed4"), PLUGINS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_on_the_teacher_s_pipeline_does_too(family: str, tmp_path: Path) -> None:
    spec, u = trained(family, tmp_path)
    row = ROWS[family]
    kind = getattr(diffusers, row.pipeline)
    if not hasattr(kind, "load_lora_weights"):
        pytest.skip(f"{row.pipeline} loads no LoRA in diffusers {diffusers.__version__}")
    for steps in STEPS[family == "mochi" :]:
        folder = tmp_path / f"lora{steps}"
        flowmap.export(tmp_path / "student", "lora", folder, options={"steps": steps})
        pipe = kind.from_pretrained(tmp_path / "base")
        pipe.load_lora_weights(folder)
        if not row.vp:
            pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=spec.shift, **row.schedule)
        assert off(pipe, u, family, folder) < 1e-5, steps


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    spec, _ = trained(QUICK, tmp_path)
    trained("mochi", tmp_path / "mochi")
    with pytest.raises(ExportError, match="steps = 1: MochiPipeline makes no such grid: float division by zero"):
        flowmap.export(tmp_path / "mochi" / "student", "fixed-steps", tmp_path / "out", options={"steps": 1})
    for steps in (0, 101, 2.5):
        with pytest.raises(ExportError, match=rf"steps = {steps}: must be an integer from 1 to 100"):
            flowmap.export(tmp_path / "student", "fixed-steps", tmp_path / "out", options={"steps": steps})
    whole = evolve(spec, lora=None)
    whole.save(whole.build(frozenset({"student"}), **CPU)["student"], tmp_path / "whole")
    with pytest.raises(ExportError, match=r"has no adapters \(lora/.*\): its weights were trained whole; export"):
        flowmap.export(tmp_path / "whole", "lora", tmp_path / "out")
    assert not (tmp_path / "out").exists()
