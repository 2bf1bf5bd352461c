"""Run directories for the page: written by the product's own writers, without training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve
from torch import Tensor

from flowmap import Recipe, Rng
from flowmap.atomic import write_json
from flowmap.evaluation import album, records
from flowmap.evaluation.health import Alarms
from flowmap.evaluation.records import Point, Record
from flowmap.recipe import describe, digest
from flowmap.training.run import environment
from flowmap.training.store.health import HEALTH, PREVIEWS
from flowmap.training.store.metrics import Metrics
from flowmap.training.store.status import FILE, Status
from tests.evaluation.seen import STEADY

STEPS = (1, 2, 4, 8)
PROMPTS = ('a <b>red</b> ball & "a" cube', "another")
FRAMES = 6


def clips(brightness: float) -> Tensor:
    """[2, 6, 3, 8, 12]: a frame of its own shade for each, so that a player's frame can be told."""
    shade = brightness + 0.02 * torch.arange(FRAMES)[None, :] + 0.3 * torch.arange(2)[:, None]
    return shade[..., None, None, None].expand(2, FRAMES, 3, 8, 12)


def points(renoised: bool = True) -> dict[Point, Tensor]:
    found = {Point("teacher", "euler", n, 2 * n): clips(0.05 + 0.01 * k) for k, n in enumerate((*STEPS, 50))}
    found |= {Point("student", "flow_map", n, n): clips(0.2 + 0.05 * k) for k, n in enumerate(STEPS)}
    noised = {Point("student", "consistency", n, n): clips(0.4 + 0.05 * k) for k, n in enumerate(STEPS)}
    return found | (noised if renoised else {})


def run(path: Path, recipe: Recipe = STEADY, state: str = "finished", *, alarms: bool = False) -> Path:
    """A run of two stages, judged."""
    write_json(path / "recipe.json", {"digest": digest(recipe), **describe(recipe), "somewhere": "/home/me/clips/x"})
    write_json(path / "env.json", environment())
    where = {"stage": 1, "stages": 2, "method": "anyflow_on_policy", "step": 5, "steps": 5}
    status = Status("finished", "here", 1, started="2026-01-02T03:04:05+0000")
    write_json(path / FILE, {**asdict(status), **where, "state": state})
    log, health = Metrics(path / "metrics.jsonl"), Metrics(path / HEALTH)
    for stage, steps in ((0, 6), (1, 5)):
        for iteration in range(steps):
            loss = {"student/loss": 2.0 / (1 + iteration), "student/lr": 1e-4, "student/skipped": 0.0}
            when = {"stage": stage, "iteration": iteration, "time": 100.0 * stage + 3 * iteration}
            log.add({**when, "peak_gib": 1.5, **loss})
        values = dict.fromkeys((*Alarms().limits(), "paired_error"), 1.0 + 0.1 * stage)
        bad = evolve(Alarms()).raised(values | {"saturation": 1.62}) if alarms else {}
        health.add(record(stage, steps, values, {k: v for k, v in bad.items() if k == "saturation"}))
        folder = path / PREVIEWS / f"stage_{stage}_{steps:08d}"
        album.write(points(renoised=False), PROMPTS, folder, 12.0)
        picture(folder / "grid.png", stage)
    judge(path)
    return path


def record(stage: int, steps: int, values: dict[str, float], alarms: dict[str, str]) -> dict[str, Any]:
    told = {"stage": stage, "iteration": steps, "done": steps, "time": 1.0, "judged": 4}
    return {**told, "values": {"1": values, "4": values}, "alarms": alarms, "limits": Alarms().told()}


def judge(path: Path) -> None:
    found = [
        Record(*(p.model, p.sampler, p.steps, p.calls), "energy_distance", value(p), 0.02, 3, "lower") for p in points()
    ]
    write_json(path / "evaluation" / "nfe.json", records.as_json(found))
    told = {"samples_per_seed": 32, "seeds": [0, 1, 2], "real": {"energy_distance": {"mean": -0.01, "std": 0.05}}}
    write_json(path / "evaluation" / "manifest.json", told)
    album.write(points(), PROMPTS, path / "samples", 12.0)


def value(point: Point) -> float:
    return math.exp(-point.steps) + (0.0 if point.model == "teacher" else 0.05) - 0.01


def picture(path: Path, shade: int) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), (60 + 90 * shade, 0, 0)).save(path)


def large(count: int = 81, side: int = 480) -> dict[Point, Tensor]:
    """Clips of the size of Wan's."""
    noise = Rng.seeded(0).noise_like(torch.zeros(1, count, 3, 12, 21)).clamp(-1, 1) / 4 + 0.5
    video = torch.nn.functional.interpolate(noise[0], size=(side, side * 832 // 480))[None]
    return {Point("teacher", "euler", 4, 8): video, Point("student", "flow_map", 4, 4): video}
