"""The large recipes train, at the size of their tiny backbones."""

from __future__ import annotations

import pytest
from attrs import evolve

from flowmap import TensorData, distill
from flowmap.cli import recipes

WAN = ("anyflow_wan1b", "anyflow_wan14b", "anyflow_far1b", "anyflow_far14b")
ROWS = ("anyflow_ltx", "anyflow_hunyuan", "anyflow_cogvideox5b", "anyflow_qwen_image", "anyflow_stepvideo")
ROWS += ("anyflow_wan_i2v14b",)
EXPERTS = ("anyflow_wan22_a14b_high", "anyflow_wan22_a14b_low")


@pytest.mark.parametrize("name", WAN + ROWS + EXPERTS)
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


@pytest.mark.parametrize("name", WAN)
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


@pytest.mark.parametrize("name", ROWS)
def test_what_was_not_published_is_anyflows(name):
    """Iterations, batch, optimiser, averages and adapters of the 1.3B or 14B of Wan2.1; γ, but no sizes."""
    recipe, like = recipes.load(name), recipes.load("anyflow_wan1b" if name == "anyflow_ltx" else "anyflow_wan14b")
    assert (recipe.backbone.lora, recipe.backbone.gamma) == (like.backbone.lora, like.backbone.gamma)
    assert recipe.dtype == like.dtype and recipe.backbone.checkpointing
    theirs = {stage.method.name: stage for stage in like.stages}
    for stage in recipe.stages:
        of = theirs[stage.method.name]
        for setting in ("steps", "batch", "micro", "optimizer", "ema"):
            assert getattr(stage, setting) == getattr(of, setting), setting


@pytest.mark.parametrize("name, within, w", [(EXPERTS[0], (0.875, 1.0), 4.0), (EXPERTS[1], (0.0, 0.875), 3.0)])
def test_an_expert_is_trained_on_its_side_with_its_guidance(name, within, w):
    recipe, like = recipes.load(name), recipes.load("anyflow_wan14b")
    for stage, of in zip(recipe.stages, like.stages, strict=True):
        for setting in ("steps", "batch", "micro", "optimizer", "ema"):
            assert getattr(stage, setting) == getattr(of, setting), setting
    zero, one, two = (stage.method.updates[0].terms for stage in recipe.stages)
    (_, dmd), (_, matching) = two
    for objective in (zero[0][1], one[0][1], matching):
        assert objective.times.within == within
    assert dmd.rollout.within == within and (dmd.w, matching.guidance.w) == (w, w) and dmd.end == within[0]
    assert recipe.backbone.shift == 12.0


def test_guidance_that_is_built_in_is_learnt_as_it_is():
    """w = 1 everywhere, towards the teacher's velocity, and no call without a prompt."""
    recipe = recipes.load("anyflow_hunyuan")
    one, two = recipe.stages
    assert one.method.name == "anyflow_forward"
    (dmd, matching), forward = (o for _, o in two.method.updates[0].terms), one.method.updates[0].terms[0][1]
    assert dmd.w == 1.0 and recipe.backbone.distilled and recipe.backbone.sampling().guidance == 6.0
    for objective in (matching, forward):
        assert (objective.velocity, objective.guidance.w, objective.guidance.drop) == ("teacher", 1.0, 0.0)


@pytest.mark.parametrize("name", ROWS)
def test_sizes_are_those_that_the_network_takes(name):
    """Of the published network: channels and widths of its conditions, and a shift of its family."""
    recipe = recipes.load(name)
    row, config, (_, channels, height, width) = recipe.backbone.row, recipe.backbone.outline().config, recipe.data.x
    assert recipe.data.cond.keys() | {"z"} == row.example.keys()
    taken = config["out_channels" if row.images else "in_channels"]
    assert channels * row.side**2 in {taken, row.side**2 * taken}
    for entry in row.images:  # of the same shapes, with the channels that are left
        first = recipe.data.cond[entry]
        assert first[-1] in {*config.values()} or first == (
            recipe.data.x[0],
            config["in_channels"] - taken,
            height,
            width,
        )
    assert height % row.side == width % row.side == 0 and recipe.backbone.shift == row.shift
    widths = {*config.values(), *config.get("caption_channels", ())} if row.latents_only else {*config.values()}
    assert recipe.data.cond["text"][1] in widths
