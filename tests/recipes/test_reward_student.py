"""The reward recipe from a student's directory to the comparison of before and after, on one iteration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from attrs import evolve
from flowmap_consistency import reward
from flowmap_consistency.reward import RewardGradient
from flowmap_consistency.reward_matching import RewardMatching
from flowmap_digits import TINY_WAN
from flowmap_digits.rewards import INK, LEGIBLE, POSITION
from flowmap_wan21 import Wan21

from flowmap import Batch, FlowMap, Recipe, Rng, distill
from flowmap._types import Shared
from flowmap.cli import recipes
from flowmap.plugins import reward as registered
from flowmap.rewards import Reward, Scores

CPU = torch.device("cpu")


def student(path: Path) -> tuple[Wan21, FlowMap]:
    """Lifted and never distilled."""
    spec = Wan21(TINY_WAN, lora=None, text_tokens=12, shift=1.0)
    u = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    spec.save(u, path)
    return evolve(spec, path=str(path)), u


@pytest.mark.slow
def test_the_recipe_scores_its_own_samples_and_shows_before_and_after(tmp_path: Path) -> None:
    full: Recipe = recipes.load("reward_student")
    spec, _ = student(tmp_path / "earlier")
    matching = full.stages[0].method.updates[0].terms[0][1]
    assert isinstance(matching, RewardMatching)
    scores = evolve(matching.scores, backbone=spec)
    trial = full.capped(1)
    stage = evolve(trial.stages[0], method=reward.nft(scores, number=2, pairs=1, shift=1.0), batch=2)
    evaluation = evolve(trial.evaluation, steps=(1, 2), reference=2)  # type: ignore[type-var]
    data = evolve(full.data, count=8)  # type: ignore[type-var]
    small = evolve(trial, backbone=spec, stages=(stage,), data=data, evaluation=evaluation)
    distill(small, out=tmp_path / "run", device="cpu")
    found = {r["metric"] for r in json.loads((tmp_path / "run" / "evaluation" / "nfe.json").read_text())}
    assert {"ink", "legible", "variety", "energy_distance"} <= found
    told = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "student/reward/ink" in told and "student/reward/legible" in told and "student/variety" in told


def test_rewards_of_the_digits_are_found_by_name_and_have_gradients_through_the_decoder(tmp_path: Path) -> None:
    """Of clips that are known: a bright one, a dark one, ink above and below; and of latents, by way of the VAE."""
    rewards = [INK, POSITION, LEGIBLE]
    assert all(isinstance(one, Reward) for one in rewards)
    assert [registered(one.name) for one in rewards] == rewards
    clips = torch.zeros(3, 9, 3, 32, 32)
    clips[0], clips[1, :, :, 0], clips[2, :, :, -1] = 1.0, 1.0, 1.0
    torch.testing.assert_close(INK(clips, [""] * 3), torch.tensor([1.0, 1 / 32, 1 / 32]))
    torch.testing.assert_close(POSITION(clips, [""] * 3), torch.tensor([0.5, 1.0, 0.0]))
    texts = ("a two moving up slowly", "a seven moving down quickly")
    spec, _ = student(tmp_path / "student")
    scores = Scores(spec, tuple((1.0, one) for one in rewards), prompts=texts)
    cond = spec.codec(device=CPU, dtype=torch.float32).encode_prompts([texts[1], texts[0]])
    x = Rng.seeded(0).noise_like(torch.zeros(2, 5, 4, 8, 8)).requires_grad_()
    found = scores(x, cond)
    assert found.shape == (3, 2)
    asked = LEGIBLE(spec.codec(device=CPU, dtype=torch.float32).decode(x.detach()), [texts[1], texts[0]])
    torch.testing.assert_close(found[2], asked)  # each by its own prompt, known by its condition
    (g,) = torch.autograd.grad(found.sum(), x)
    near = (x + 1e-3 * g / g.norm()).detach()
    rise = (scores(near, cond) - found).detach().double().sum() / 1e-3
    torch.testing.assert_close(float(rise), float(g.norm()), rtol=0.05, atol=0.0)


def test_a_reward_s_gradient_goes_through_the_rollout_to_the_student(tmp_path: Path) -> None:
    spec, u = student(tmp_path / "student")
    scores = Scores(spec, ((1.0, INK),))
    cond = spec.codec(device=CPU, dtype=torch.float32).encode_prompts(["a two moving up slowly"])
    batch = Batch(torch.zeros(1, 5, 4, 8, 8), cond, {})
    u.requires_grad_(True)
    loss = RewardGradient(scores)({"student": u}, batch, Rng.seeded(0), Shared())
    loss.value.backward()
    assert float(loss.value.detach()) < 0 and any(p.grad is not None and p.grad.abs().max() > 0 for p in u.parameters())
