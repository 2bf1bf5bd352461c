"""AdamW with its moments in 8 bits, beside torch's in float32."""

from __future__ import annotations

import sys

import pytest
import torch
from attrs import asdict, evolve
from flowmap_wan21 import Lora, Wan21

from flowmap import AdamW, AdamW8bit, Ema, Recipe, Stage, TensorData, adamw8bit, distill
from flowmap.adamw8bit import Optimizer8bit, decoded, encoded
from flowmap.methods import anyflow
from flowmap.planning.trace import trace
from flowmap.recipe import RecipeError
from tests.planning.helpers import data, hollow, spec, stage
from tests.training.resumed import assert_goes_on

SIZE = (64, 100)


def draw(*, seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["m", "v"])
def test_a_number_is_right_in_the_mean_over_steps(name):
    """Within a code in every step, and to a hundredth of one in the mean of many."""
    x = torch.randn(SIZE, generator=draw())
    x = x.square() if name == "v" else x
    found = []
    for step in range(1000):
        codes, scale = encoded(x, name, torch.tensor(float(step)))
        found.append(decoded({name: codes, f"{name}_scale": scale}, name))
    made = torch.stack(found)
    code = made.amax(0) - made.amin(0)
    assert ((made - x).abs() <= code + 3e-3 * code.max()).all()
    assert (made.mean(0) - x).abs().max() < 6e-3 * code.max() and code.max() < 0.05 * x.abs().max()


def steps(make, betas, count=300):
    """Towards a target, by gradients of very different sizes, with noise that ends: v must come down."""
    g = draw()
    target, p = torch.randn(SIZE, generator=g), torch.nn.Parameter(torch.zeros(SIZE))
    scales, optimizer = 10 ** torch.empty(SIZE).uniform_(-3, 0, generator=g), make([p], betas)
    for i in range(count):
        noise = torch.randn(SIZE, generator=g) * (0.3 if i < count / 2 else 0.01)
        p.grad = scales * (p.detach() - target + noise)
        optimizer.found_inf = torch.zeros(())
        optimizer.step()
    return p.detach()


def plain(parameters, betas):
    return torch.optim.AdamW(parameters, 1e-2, betas, weight_decay=0.01, fused=True)


def low(parameters, betas):
    return Optimizer8bit(parameters, AdamW(1e-2, betas, weight_decay=0.01))


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.0, 0.999)], ids=str)
def test_it_leads_where_torch_s_does(betas):
    exact = steps(plain, betas)
    assert 0 < (steps(low, betas) - exact).norm() / exact.norm() < 0.02


def test_small_tensors_are_torch_s_bit_for_bit(monkeypatch):
    monkeypatch.setattr(adamw8bit, "SMALL", 10**6)
    assert torch.equal(steps(low, (0.9, 0.95), 20), steps(plain, (0.9, 0.95), 20))


def test_planted_the_nearest_code_keeps_what_should_come_down(monkeypatch):
    """The point between two codes always in the middle."""
    monkeypatch.setattr(adamw8bit, "GOLDEN", 0.0)
    monkeypatch.setattr(adamw8bit, "PLASTIC", 0.0)
    with pytest.raises(AssertionError):
        test_a_number_is_right_in_the_mean_over_steps("v")


def test_a_step_that_is_skipped_changes_nothing():
    p = torch.nn.Parameter(torch.ones(SIZE))
    optimizer = low([p], (0.9, 0.95))
    for skip in (0.0, 1.0):
        before = {k: v.clone() for k, v in optimizer.state.get(p, {}).items()}
        was = p.detach().clone()
        p.grad, optimizer.found_inf = torch.full(SIZE, 0.5 if skip == 0 else torch.inf), torch.tensor(skip)
        optimizer.step()
    assert torch.equal(p, was) and all(torch.equal(v, before[k]) for k, v in optimizer.state[p].items())


def recipe(count: int) -> Recipe:
    own = evolve(Wan21().tiny(), lora=Lora(rank=96, alpha=96.0), base="int8")  # some tensors are not small
    z, cond = own.example(6)
    settings = AdamW8bit(1e-3)
    stages = [Stage(anyflow.forward(), count, 2, optimizer=settings, ema=Ema(0.9, 1))]
    return Recipe(own, stages, data=TensorData(z, dict(cond), dict(own.null(cond))))


def test_a_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    assert_goes_on(recipe, tmp_path, monkeypatch)


def test_what_a_plan_counts():
    """Two bytes a number, and two scales for 256."""
    wide = evolve(spec(), lora=Lora(rank=96, alpha=96.0))
    own = stage(anyflow.forward())
    found = [
        trace(evolve(own, optimizer=settings), hollow(wide), data(), 0, 0, 1).lasting["optimiser"]
        for settings in (AdamW(), AdamW8bit())
    ]
    assert found[1] / found[0] == pytest.approx((2 + 8 / 256) / 8, rel=0.05)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["flowmap.distill"], "world", lambda: 2)
    with pytest.raises(RecipeError, match="AdamW8bit: of a network in pieces on 2 processes the moments are divided"):
        distill(recipe(2), device="cpu")
    assert asdict(AdamW8bit()) == asdict(AdamW())
