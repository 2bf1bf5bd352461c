"""The large recipes train, at the size of their tiny backbones."""

from __future__ import annotations

import pytest
from attrs import evolve

from flowmap import TensorData, distill
from flowmap.cli import recipes

LARGE = ("anyflow_wan1b", "anyflow_wan14b", "anyflow_far1b", "anyflow_far14b")


@pytest.mark.parametrize("name", LARGE)
def test_two_steps_of_every_stage(name, tmp_path):
    recipe = recipes.load(name)
    backbone = recipe.backbone.tiny()
    x, cond = backbone.example(4)
    stages = tuple(evolve(stage, steps=2, batch=4) for stage in recipe.stages)
    tiny = evolve(recipe, backbone=backbone, data=TensorData(x, cond, backbone.null(cond)), stages=stages)
    student = distill(tiny, out=tmp_path, device="cpu")
    assert all(p.isfinite().all() for p in student.trained().values())
    assert any(p.abs().max() > 0 for key, p in student.trained().items() if "lora_B" in key)
    assert (tmp_path / "student" / "flowmap.json").is_file()


@pytest.mark.parametrize("name", LARGE)
def test_the_settings_are_the_published_ones(name):
    recipe = recipes.load(name)
    zero, one, two = recipe.stages
    large = "14b" in name
    assert [s.batch for s in recipe.stages] == [16 if large else 32] * 3
    assert [s.steps for s in recipe.stages] == [4000 if large else 6000] * 2 + [1200]
    assert zero.method.trains == {"teacher"} and two.method.trains == {"student", "critic"}
    for stage, (lr, betas, warmup, decay, start) in zip(
        (zero, one, two),
        [(5e-5, (0.9, 0.95), 1000, 0.999, 1000)] * 2 + [(2e-6, (0.0, 0.999), 0, 0.99, 200)],
        strict=True,
    ):
        settings = stage.optimizer
        assert (settings.lr, settings.betas, settings.warmup, settings.clip) == (lr, betas, warmup, 1.0)
        assert (stage.ema.decay, stage.ema.start) == (decay, start)
    assert recipe.backbone.lora.rank == recipe.backbone.lora.alpha == 256
    assert recipe.data.x == (21, 16, 60, 104) and recipe.data.cond == {"text": (512, 4096)}
