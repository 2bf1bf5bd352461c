"""Muon of matrices, AdamW of the rest, beside their equations."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from attrs import asdict, evolve
from flowmap_wan21 import Lora, Wan21

from flowmap import AdamW, Ema, Muon, Recipe, Stage, TensorData, distill
from flowmap.methods import anyflow
from flowmap.muon import MuonAdamW
from flowmap.planning.trace import trace
from flowmap.recipe import RecipeError
from flowmap.training.loop import Trainer
from tests.planning.helpers import data, hollow, spec, stage
from tests.training.resumed import assert_goes_on

SIZE = (24, 10)
BF16 = 2.0**-8  # half a unit in the last place, relative


def draw(size=SIZE, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def newton_schulz(g: torch.Tensor) -> torch.Tensor:
    """X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X, five times, from G / ‖G‖, in float64; along the shorter side of G."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (g.T if g.shape[0] > g.shape[1] else g).double()
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def factor(adjust: str, a: int, b: int) -> float:
    return 0.2 * math.sqrt(max(a, b)) if adjust == "match_rms_adamw" else math.sqrt(max(1, a / b))


@pytest.mark.parametrize("size", [(24, 10), (10, 24)], ids=str)
@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_two_steps_of_a_matrix_are_the_equation_s(adjust, size):
    """Within what the iteration in bfloat16 loses: 15 products, each rounded."""
    settings = Muon(1e-2, weight_decay=0.1, momentum=0.9, adjust=adjust)
    p = torch.nn.Parameter(draw(size, seed=1))
    optimizer, moment = MuonAdamW([p], settings), torch.zeros(size).double()
    for step in range(2):
        before, p.grad = p.detach().double(), draw(size, seed=2 + step)
        optimizer.step()
        g = p.grad.double()
        moment = 0.9 * moment + 0.1 * g
        change = -1e-2 * factor(adjust, *size) * newton_schulz(0.1 * g + 0.9 * moment)
        found = p.detach().double() - before * (1 - 1e-2 * 0.1)
        assert (found - change).norm() / change.norm() < 15 * BF16
        assert torch.allclose(optimizer.state[p]["momentum_buffer"].double(), moment, atol=1e-6)


def test_the_rest_steps_as_adamw_does_with_its_own_rate():
    """Bit for bit, through the trainer, whose warm-up and cosine scale both rates."""
    found = []
    of = evolve(spec(), lora=None)
    for settings in (Muon(1e-2, (0.8, 0.9), adamw_lr=3e-4, weight_decay=0.1), AdamW(3e-4, (0.8, 0.9), 0.1)):
        settings = evolve(settings, warmup=1, schedule="cosine")
        nets = of.build(frozenset({"student", "teacher"}), device=torch.device("cpu"), dtype=torch.float32)
        trainer = Trainer(nets, evolve(stage(anyflow.forward()), optimizer=settings), data())
        before = {name: p.detach().clone() for name, p in trainer.trained["student"].items()}
        trainer.step(0)
        found.append((before, trainer.trained["student"]))
    (start, mixed), (same, plain) = found
    assert all(torch.equal(start[name], same[name]) for name in start)
    kinds = {p.ndim for p in mixed.values()}
    assert 2 in kinds and kinds - {2}
    moved = 0
    for name, p in mixed.items():
        assert torch.equal(p, plain[name]) == (p.ndim != 2 or torch.equal(p, start[name])), name
        moved += not torch.equal(p, start[name])
    assert moved > 10


def test_adapters_are_matrices():
    nets = spec().build(frozenset({"student", "teacher"}), device=torch.device("cpu"), dtype=torch.float32)
    optimizer = MuonAdamW(nets["student"].trained().values(), Muon())
    adapters = {id(p) for name, p in nets["student"].trained().items() if "lora_" in name}
    stepped = {id(p) for muon in optimizer.muons for p in muon.param_groups[0]["params"]}
    assert len(adapters) > 10 and adapters <= stepped


def test_a_step_that_is_skipped_changes_nothing():
    matrix, bias = torch.nn.Parameter(draw()), torch.nn.Parameter(draw((7,)))
    optimizer = MuonAdamW([matrix, bias], Muon(weight_decay=0.1))
    for skip in (1.0, 0.0, 1.0):
        before = {(p, k): v.clone() for p in (matrix, bias) for k, v in optimizer.state.get(p, {}).items()}
        was = [p.detach().clone() for p in (matrix, bias)]
        optimizer.found_inf = torch.tensor(skip)
        for p in (matrix, bias):
            p.grad = torch.full_like(p, torch.nan) if skip else torch.ones_like(p)
        optimizer.step()
        assert all(torch.equal(p, w) == bool(skip) for p, w in zip((matrix, bias), was, strict=True))
        assert all(torch.equal(optimizer.state[p][k], v) == bool(skip) for (p, k), v in before.items())
    assert optimizer.state[matrix].keys() == {"momentum_buffer"}


def recipe(count: int) -> Recipe:
    own = evolve(Wan21().tiny(), lora=Lora(rank=4, alpha=4.0))
    z, cond = own.example(6)
    stages = [Stage(anyflow.forward(), count, 2, optimizer=Muon(1e-3, weight_decay=0.1), ema=Ema(0.9, 1))]
    return Recipe(own, stages, data=TensorData(z, dict(cond), dict(own.null(cond))))


def test_a_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    assert_goes_on(recipe, tmp_path, monkeypatch)


def test_what_a_plan_counts():
    """One moment of a matrix, two and a counter of the rest."""
    own, counted = stage(anyflow.forward()), []
    for settings in (AdamW(), Muon()):
        nets = hollow(evolve(spec(), lora=None))
        sizes = [(p.ndim, p.nbytes) for p in nets["student"].trained().values()]
        found = trace(evolve(own, optimizer=settings), nets, data(), 0, 0, 1).lasting["optimiser"]
        counted.append((found, sum(b * (2 - (n == 2 and isinstance(settings, Muon))) for n, b in sizes)))
    assert counted[0][1] > 1.5 * counted[1][1]
    assert all(found == pytest.approx(must, rel=0.01) for found, must in counted)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["flowmap.distill"], "world", lambda: 2)
    with pytest.raises(RecipeError, match="Muon: a step of a matrix is made of all of it, and of a network in pi"):
        distill(recipe(2), device="cpu")


@pytest.mark.parametrize(
    "field, value, must",
    [("momentum", 1.0, "< 1"), ("adjust", "match", "match_rms_adamw"), ("adamw_lr", 0.0, "> 0")],
)
def test_bad_settings_are_refused(field, value, must):
    with pytest.raises(ValueError, match=rf"Muon\.{field} = .*{must}"):
        Muon(**{field: value})
    assert asdict(AdamW()).items() <= asdict(Muon()).items()
