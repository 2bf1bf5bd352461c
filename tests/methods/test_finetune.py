"""Fine-tuning rests at the flow map of the new data, and keeps few-step sampling, which flow matching loses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowmap import AdamW, Batch, Ema, FlowMap, ModuleSpec, Recipe, Rng, Stage, TensorData, distill, sample
from flowmap._types import Shared
from flowmap.method import Method
from flowmap.methods import anyflow
from flowmap.methods.finetune import finetune
from flowmap.methods.flow_matching import flow_matching
from flowmap.path import interpolate
from flowmap.testing import GaussianFlowMap, GuidedGaussianFlowMap
from tests.toys import Toy
from tests.toys import data as toy_data

OLD, NEW = (-1.0, 0.5), (1.0, 0.2)
"""Mean and standard deviation, of either element of the plane."""


def draw(n: int, key: int, mean: float, std: float) -> Tensor:
    return mean + std * Rng.seeded(key).noise_like(torch.empty(n, 2))


def test_it_is_stage_1_on_data() -> None:
    assert (
        finetune(shift=2.0, guidance=4.0, drop=0.2).updates
        == anyflow.forward(shift=2.0, guidance=4.0, drop=0.2).updates
    )
    assert finetune().needs == finetune().trains == {"student"}


def pull(w: float, **wrong: float) -> Tensor:
    """The mean gradient for (scale, bias) in standard errors, of data N(1, 0.5²) under guidance w.

    Samples of many elements: the balanced loss divides by a sample's own loss, which one element would make small.
    """
    ((_, objective),) = finetune(shift=1.0, guidance=w, drop=0.0).updates[0].terms
    student, found = GuidedGaussianFlowMap(1.0, 0.5, w=w, **wrong), []
    for seed in range(20):
        x = 1.0 + 0.5 * Rng.seeded(7, seed).noise_like(torch.empty(256, 64))
        batch = Batch(x, {"label": torch.ones(256)}, {"label": torch.zeros(1)})
        value = objective({"student": student}, batch, Rng.seeded(seed), Shared()).value
        found.append(torch.stack(torch.autograd.grad(value, [student.scale, student.bias])))
    g = torch.stack(found)
    return g.mean(0) / (g.std(0) / len(g) ** 0.5)


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_it_rests_at_the_flow_map_of_the_new_data(w: float) -> None:
    """On average, for its velocities are the data's; the null branch is the student's own."""
    assert pull(w).abs().max() < 4
    assert pull(w, scale=1.05)[0] > 20
    assert pull(w, bias=0.05)[1] > 20


def test_a_causal_student_can_be_fine_tuned() -> None:
    spec = Toy(causal=True)
    before = {k: v.clone() for k, v in built(spec).state_dict().items()}
    stage = Stage(finetune(), 2, batch=4, optimizer=AdamW(1e-3), ema=None)
    after = distill(Recipe(spec, (stage,), data=toy_data(8, spec)), device="cpu").state_dict()
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def built(spec: Toy) -> FlowMap:
    return spec.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]


class Net(nn.Module):
    """u(z, t, r) in the plane."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        out: Tensor = self.body(torch.cat([z, t[:, None], r[:, None]], 1))
        return out


@pytest.fixture(scope="module")
def distilled() -> Net:
    """A student of the old data: regressed on its exact flow map."""
    net, true = Net(), GaussianFlowMap(*OLD).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters())
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 600)
        rng, x = Rng.seeded(1, step), draw(256, 1000 + step, *OLD)
        a, b, edge = rng.uniform(256, x), rng.uniform(256, x), rng.uniform(256, x) < 0.3
        t, r = torch.maximum(a, b), torch.minimum(a, b).masked_fill(edge, 0.0)
        z, _ = interpolate(x, rng.noise_like(x), t)
        optimizer.zero_grad()
        (net(z, t, r) - true(z, t, r, {})).square().mean().backward()
        optimizer.step()
    return net


def tuned(net: Net, method: Method) -> FlowMap:
    optimizer = AdamW(4e-3, betas=(0.9, 0.99), schedule="cosine")
    stage = Stage(method, 600, batch=256, optimizer=optimizer, ema=Ema(0.98, start=50))
    data = TensorData(draw(4096, 5, *NEW))
    return distill(Recipe(ModuleSpec(net, time=None), (stage,), data=data), device="cpu")


def judged(u: Any) -> Mapping[str, float]:
    """Distances to the new data (Wasserstein-2 of Gaussians) by steps, and how far one step ends from sixteen."""
    noise = Rng.seeded(9).noise_like(torch.empty(4000, 2))
    ends = {n: sample(u, noise, {}, n) for n in (1, 16)}
    w2 = {f"{n}": ((e.mean(0) - NEW[0]).square() + (e.std(0) - NEW[1]).square()).sum().sqrt() for n, e in ends.items()}
    return {name: float(v) for name, v in w2.items()} | {"gap": float((ends[1] - ends[16]).norm(dim=1).mean())}


def test_it_adapts_at_every_number_of_steps_and_flow_matching_at_many_alone(distilled: Net) -> None:
    """Measured: 0.15, 0.18 and a gap of 0.05; by flow matching 1.7, 0.1 and 1.7; 2.9 before."""
    mine = judged(tuned(distilled, finetune(shift=1.0, guidance=1.0, drop=0.0)))
    plain = judged(tuned(distilled, flow_matching(role="student", shift=1.0, drop=0.0)))
    assert max(mine["1"], mine["16"]) < 0.4 and mine["gap"] < 0.2
    assert plain["16"] < 0.4
    assert plain["1"] > 0.8 and plain["gap"] > 0.8
