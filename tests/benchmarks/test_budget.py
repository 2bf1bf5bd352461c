"""What training costs in calls, and how a stage is made shorter."""

import pytest
import torch
from attrs import evolve

from benchmarks.budget import Calls, Meter, count, scaled, small
from benchmarks.law_rows import CAUSAL, NAMES, TEACHER
from tests.toys import CHUNK, FRAMES, Toy, data


def test_calls_count_frames_and_tangents():
    u = Toy(causal=True).build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    meter, batch = Meter(u, FRAMES), data(4).batch([0, 1])
    z, t = batch.x, torch.full((2,), 0.5)
    chunk = z[:, :CHUNK]
    with torch.no_grad():
        meter(chunk, t, t, batch.cond)
        cache = meter.extend(None, chunk, batch.cond)
    assert meter.calls == Calls(plain=2 * 2 * CHUNK / FRAMES)
    meter(z[:, CHUNK : 2 * CHUNK], t, t, batch.cond, cache)
    assert meter.calls.graph == 2 * CHUNK / FRAMES
    assert Calls(1, 2, 3) + Calls(1, 0, 0) * 2 == Calls(3, 2, 3) and Calls(1, 2, 3).total == 6


def test_a_shorter_stage_warms_up_and_averages_for_shorter():
    for stage in NAMES["anyflow"].recipe().stages:
        half = scaled(stage, 4, 0.5, 3.0)
        assert half.steps == stage.steps / 2 and half.ema.start == stage.ema.start / 2 and half.batch == 4
        assert 1 - half.ema.decay == pytest.approx(2 * (1 - stage.ema.decay))
        for role in stage.method.trains:
            assert half.optimizer_of(role).lr == pytest.approx(3 * stage.optimizer_of(role).lr)
            assert half.optimizer_of(role).warmup == stage.optimizer_of(role).warmup / 2


def test_a_small_network_has_the_same_chunks():
    assert (small(CAUSAL).partition, small(TEACHER)) == (CAUSAL.partition, TEACHER.tiny())


def test_heads_are_counted_on_the_grid_that_they_are_trained_on():
    """A walk of 32 intervals has 2.6 blocks on average, each up to the whole way; of fewer heads it has fewer."""
    recipe = NAMES["parallel_decoding"].recipe()
    tiny = evolve(recipe, backbone=small(recipe.backbone), teacher=small(TEACHER))
    assert tiny.backbone.heads == recipe.backbone.heads == 32
    (cost,) = count(tiny, 5, 24)
    blocks = (1 + 1 / 32) ** 31  # E(n) = 1 + mean of E below n, until the end
    assert cost["student"].graph == pytest.approx(blocks, abs=0.6) and cost["student"].plain == 0
    assert cost["teacher"].total == pytest.approx(2 * cost["student"].graph)  # midpoints, w = 1


def test_consistency_distillation_calls_its_student_and_teacher_twice():
    recipe = NAMES["consistency"].recipe()
    tiny = evolve(recipe, backbone=small(recipe.backbone), teacher=small(TEACHER))
    (cost,) = count(tiny, 5, 1)
    assert (cost["student"].graph, cost["student"].plain) == (1.0, 1.0)  # 1 G and 1 F
    assert cost["teacher"].total == 1.0  # w = 1: no guidance, one call a step
