"""Parallel decoding: heads on a fine grid, which learn the teacher's steps from one call."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from flowmap_consistency import decoder as decoding
from flowmap_consistency.decoded import Decoded
from flowmap_consistency.decoder import Decoder, last_linear
from flowmap_consistency.parallel_decoding import ParallelDecoding, parallel_decoding
from torch import Tensor, nn

from flowmap import AdamW, Batch, FlowMap, Recipe, Rng, Stage, distill, sample
from flowmap._types import Cache, Cond, Latent, Role, Shared, Time
from flowmap.model import Spans
from flowmap.path import expand
from flowmap.testing import CountingFlowMap, GaussianFlowMap
from flowmap.times import euler_grid
from flowmap.training.loop import Trainer
from tests.toys import Toy, data

N, DIM = 12, 3
GRID = euler_grid(N, 3.0).tolist()
ROLES = frozenset[Role]({"student", "teacher", "critic"})
CPU = torch.device("cpu")


class World(FlowMap):
    """Features of which a table a_nk, b_nk of heads makes any affine map of z at a grid point: z and 1 in place n."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2 * N, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.out.weight)
        self.times = torch.tensor(GRID, dtype=torch.float64)[:-1]

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        at = (self.times - t[:, None]).abs().argmin(1)
        place = nn.functional.one_hot(at, N).to(z)[:, None]
        flat = z.flatten(1)[..., None]
        features = torch.cat([place * flat, place.expand(-1, flat.shape[1], -1)], -1)
        return self.out(features)[..., 0].reshape(z.shape)


def teacher_step(teacher: FlowMap, z: Tensor, k: int, solver: str) -> Tensor:
    """The teacher's own sampler: one step k -> k + 1 of the fine grid."""
    τ = torch.tensor(GRID, dtype=torch.float32)
    t, r = τ[k].expand(len(z)), τ[k + 1].expand(len(z))
    v = teacher.velocity(z, t, {})
    if solver == "midpoint":
        half = (t - r) / 2
        v = teacher.velocity(z - expand(half, z) * v, t - half, {})
    return z - expand(t - r, z) * v


def solved(teacher: FlowMap, solver: str) -> Decoder:
    """The table that is the teacher's steps exactly, read off two states, since they are affine."""
    u = Decoder(World(), "out", GRID)
    bank: Any = u.bank
    bank.double()
    ends = torch.stack([torch.zeros(1), torch.ones(1)]).double()
    with torch.no_grad():
        for n in range(N):
            z = ends
            for k in range(n, N):
                after = teacher_step(teacher, z, k, solver)
                v = (z - after) / (torch.tensor(GRID[k]) - torch.tensor(GRID[k + 1]))
                bank.weight[k, 0, n], bank.weight[k, 0, N + n] = v[1, 0] - v[0, 0], v[0, 0]
                z = after
    return u


def nothing(n: int = 4) -> Batch:
    return Batch(torch.full((n, DIM), torch.nan, dtype=torch.float64), {}, {})


def loss(student: FlowMap, teacher: FlowMap, solver: str, seed: int = 0, **settings: Any) -> Any:
    objective = ParallelDecoding(1.0, **{"least": 3, "most": 6, **settings}, solver=solver)  # type: ignore[arg-type]
    nets: Any = {"student": student, "teacher": teacher}
    return objective(nets, nothing(), Rng.seeded(seed), Shared())


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_of_a_linear_world_the_loss_is_zero_and_a_block_is_the_teachers_steps(solver: str) -> None:
    """Exactly, for heads that are a table; and of no data, whose numbers are none."""
    teacher = GaussianFlowMap().requires_grad_(False)
    u = solved(teacher, solver)
    for seed in range(4):
        found = loss(u, teacher, solver, seed).value
        assert float(found.detach()) < 1e-12
    z = Rng.seeded(1).noise_like(torch.zeros(5, DIM, dtype=torch.float64))
    τ, walked = torch.tensor(GRID), z
    for n, end in ((0, 3), (3, 9), (9, N)):
        t, r = τ[n].expand(5), τ[end].expand(5)
        block = walked - expand(t - r, z) * u(walked, t, r, {})
        for k in range(n, end):
            walked = teacher_step(teacher, walked, k, solver)
        torch.testing.assert_close(block, walked, rtol=0, atol=1e-6)


def test_a_block_begins_where_the_one_before_ended_without_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """z_n+L = z_n - (τ_n - τ_n+L) u(z_n, τ_n, τ_n+L), whatever the learning head was; blocks of 3, 6, 9 or 12."""
    seen, own = list[tuple[Tensor, Tensor]](), World.forward

    def watched(self: World, z: Latent, t: Time, *given: Any) -> Latent:
        seen.append((z, t))
        return own(self, z, t, *given)

    u = random_heads(Decoder(World(), "out", GRID).double())
    number = 0
    for seed in range(6):
        with monkeypatch.context() as patch:
            patch.setattr(World, "forward", watched)
            loss(u, GaussianFlowMap(), "euler", seed, least=3, most=12)
        assert not any(z.requires_grad for z, _ in seen)
        for (z, t), (there, s) in pairwise(seen):
            torch.testing.assert_close(there, z - expand(t - s, z) * u(z, t, s, {}), rtol=1e-6, atol=1e-6)
        number += len(seen) - 1
        seen.clear()
    assert number > 3


class BrokenAtFirst(GaussianFlowMap):
    """Its first call gives no numbers."""

    calls = 0

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.calls += 1
        return super().forward(z, t, r, cond, cache) * (torch.nan if self.calls == 1 else 1.0)


def test_a_teacher_that_breaks_in_an_early_block_is_named() -> None:
    teacher = BrokenAtFirst().requires_grad_(False)
    found = loss(solved(GaussianFlowMap(), "euler"), teacher, "euler").nonfinite
    assert teacher.calls > 1
    assert (float(found["teacher"].value), float(found["student"].value)) == (1.0, 0.0)


def test_each_head_is_pulled_to_the_teacher_alone() -> None:
    """From zero heads, gradient descent in the table ends at the teacher's steps."""
    teacher = GaussianFlowMap().requires_grad_(False)
    u, exact = Decoder(World(), "out", GRID), solved(teacher, "euler")
    u.u.requires_grad_(False)
    bank: Any = u.bank
    bank.double()
    optimizer = torch.optim.Adam(bank.parameters(), 0.1)
    objective = ParallelDecoding(1.0, least=6, most=12, solver="euler")
    for i in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - i / 300)
        optimizer.zero_grad()
        batch = Batch(torch.zeros(64, DIM, dtype=torch.float64), {}, {})
        nets: Any = {"student": u, "teacher": teacher}
        objective(nets, batch, Rng.seeded(i), Shared()).value.backward()
        optimizer.step()
    reached = [n for n in range(N) if n % 6 == 0]  # where blocks begin
    for n in reached:
        for place in (n, N + n):
            torch.testing.assert_close(bank.weight[n:, 0, place], exact.bank.weight[n:, 0, place], rtol=0, atol=0.02)


def wrong_prefix(self: Decoder, t: Time, r: Time) -> Tensor:
    """Planted: heads of a stretch are added, not weighed by their intervals."""
    τ = self.times.to(t.dtype)
    inside = ((τ[:-1] <= t[:, None] + 1e-6) & (τ[1:] >= r[:, None] - 1e-6)).to(t)
    return inside / inside.sum(1, keepdim=True).clamp_min(1)


def wrong_push(out: Tensor, y: Tensor, change: Tensor) -> Tensor:
    """Planted: what is had beside the first stretch is the first."""
    return torch.zeros_like(out)


@pytest.mark.parametrize("defect", ["prefix", "push", "step", "state"])
def test_planted_defects_are_seen(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = GaussianFlowMap().requires_grad_(False)
    u = solved(teacher, "midpoint")
    if defect == "prefix":
        monkeypatch.setattr(Decoder, "mixture", wrong_prefix)
    elif defect == "push":
        monkeypatch.setattr(decoding, "carried", wrong_push)
    elif defect == "step":  # Euler where it should be the middle
        monkeypatch.setattr(ParallelDecoding, "_step", lambda s, v, z, t, r, b: v.velocity(z, t, b.cond))
    else:  # the target at z_n, not where the heads have come to
        monkeypatch.setattr(
            ParallelDecoding, "_step", lambda s, v, z, t, r, b: v.velocity(torch.zeros_like(z), t, b.cond)
        )
    assert max(float(loss(u, teacher, "midpoint", seed).value.detach()) for seed in range(4)) > 1e-6


def random_heads(u: Decoder) -> Decoder:
    with torch.no_grad():
        for p in u.bank.parameters():
            p.copy_(Rng.seeded(7).noise_like(p))
    return u


@pytest.mark.parametrize("heads, steps", [(12, 4), (12, 3), (12, 12), (12, 1)])
def test_fused_heads_are_the_heads(heads: int, steps: int) -> None:
    """For a schedule, in float64 to 1e-12; and of no other grid."""
    u = random_heads(Decoder(World(), "out", GRID).double())
    u.u.requires_grad_(False)
    times = GRID[:: heads // steps]
    fused = u.fused(times)
    z = Rng.seeded(1).noise_like(torch.zeros(5, DIM, dtype=torch.float64))
    for t, r in pairwise(times):
        at = [torch.full((5,), s, dtype=torch.float64) for s in (t, r)]
        torch.testing.assert_close(fused(z, *at, {}), u(z, *at, {}), rtol=0, atol=1e-12)
    assert len(fused.bank.weight) == steps


def toy(heads: int = 8, **settings: Any) -> Decoded:
    return Decoded(Toy(**settings), heads=heads, layer="net.out")


@pytest.mark.parametrize("shared, dtype, off", [(False, torch.float64, 1e-12), (True, torch.float32, 1e-5)])
def test_many_stretches_of_one_call_are_those_of_calls_of_their_own(
    shared: bool, dtype: torch.dtype, off: float
) -> None:
    spec = toy(shared=shared)
    u = spec.build(ROLES, device=CPU, dtype=torch.float32)["student"].to(dtype)
    assert isinstance(u, Decoder)
    random_heads(u)
    z, cond = spec.example(3)
    z, cond, τ = z.to(dtype), {name: value.to(dtype) for name, value in cond.items()}, u.times.to(dtype)
    t = τ[[0, 2, 4]]
    ends = torch.stack([τ[[1, 3, 5]], τ[[4, 4, 8]], torch.tensor([0.33, 0.1, 0.0], dtype=dtype)])
    found = u(z, t, t, cond, Spans(t.expand(3, 3), ends))
    for of, end in zip(found, ends, strict=True):
        torch.testing.assert_close(of, u(z, t, end, cond), rtol=off, atol=off)
    (first,) = torch.autograd.grad(u(z, t, ends[0], cond).square().sum(), u.bank.weight)
    (same,) = torch.autograd.grad(found.square().sum(), u.bank.weight)  # the first alone has a graph
    torch.testing.assert_close(same, first, rtol=off, atol=100 * off)


def test_the_mean_velocity_of_any_stretch_is_the_mean_of_its_parts() -> None:
    """(t - r) u(z, t, r) adds up from one start, on the grid and off it; on the diagonal it is the head that begins."""
    u = random_heads(Decoder(World(), "out", GRID).double())
    t, s, r = torch.tensor([[1.0, 1.0, GRID[2]], [0.7, GRID[4], 0.31], [0.2, 0.0, GRID[11]]], dtype=torch.float64)
    c = [(b - a)[:, None] * u.mixture(b, a) for a, b in ((s, t), (r, s), (r, t))]
    torch.testing.assert_close(c[0] + c[1], c[2], rtol=0, atol=1e-12)
    at = torch.tensor(GRID[:-1])
    assert u.mixture(at, at).argmax(1).tolist() == [*range(N)]
    assert u.mixture(euler_grid(4, 3.0)[:-1], euler_grid(4, 3.0)[:-1]).argmax(1).tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("solver, w, each", [("euler", 1.0, 1), ("euler", 3.0, 2), ("midpoint", 3.0, 4)])
def test_a_block_costs_1_G_and_1_to_2_calls_of_the_teacher_twice_that_guided(solver: str, w: float, each: int) -> None:
    nets: dict[Role, FlowMap] = dict(Toy().build(ROLES, device=CPU, dtype=torch.float32))
    counts = {role: CountingFlowMap(u) for role, u in nets.items()}
    student = Decoder(counts["student"], "u.net.out", euler_grid(8).tolist())
    method = parallel_decoding(w=w, least=2, most=2, solver=solver)  # type: ignore[arg-type]
    loop = Trainer({**counts, "student": student}, Stage(method, 100, batch=8), data(32))
    loop.step(0)
    blocks = 4 * 8
    assert (counts["student"].graph, counts["student"].plain) == (blocks, 0)
    assert (counts["teacher"].graph, counts["teacher"].plain) == (0, each * blocks)
    assert (counts["critic"].graph, counts["critic"].plain) == (0, 0)


def test_data_are_of_no_interest_and_a_fresh_student_is_its_teacher() -> None:
    spec = toy()
    nets = spec.build(ROLES, device=CPU, dtype=torch.float32)
    z, cond = spec.example()
    t, r = torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.25])
    torch.testing.assert_close(nets["student"](z, t, r, cond), nets["teacher"](z, t, t, cond))


def test_a_student_is_distilled_saved_and_read_again(tmp_path: Path) -> None:
    """Heads are trained, and what is read is what was written."""
    method = parallel_decoding(w=1.0, least=1, most=8, solver="euler")
    stage = Stage(method, 30, batch=4, optimizer=AdamW(3e-3), ema=None)
    made = distill(Recipe(toy(), (stage,), data=data(16)), out=tmp_path, device="cpu")
    assert isinstance(made, Decoder) and float(made.bank.weight.detach().abs().max()) > 0
    read = toy().load(tmp_path / "student", device=CPU, dtype=torch.float32)
    noise, cond = toy().example()
    for steps in (1, 2, 8):
        torch.testing.assert_close(sample(read, noise, cond, steps), sample(made, noise, cond, steps))
    assert read.guidance == 1.0


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: ParallelDecoding(least=3, most=8), "most = 8: must be a multiple of least = 3"),
    (lambda: loss(GaussianFlowMap(), GaussianFlowMap(), "euler"), "the student is a GaussianFlowMap and has no heads"),
    (lambda: loss(Decoder(World(), "out", GRID), GaussianFlowMap(), "euler", least=5, most=5), "divide the 12 heads"),
    (lambda: Decoded(Toy(), heads=4, times=(1.0, 0.0)), "Decoded.times has 2: must have heads [+] 1 = 5"),
    (lambda: last_linear(GaussianFlowMap()), "GaussianFlowMap has no linear layer"),
]


@pytest.mark.parametrize("make, told", MISTAKES, ids=[told for _, told in MISTAKES])
def test_mistakes_are_named(make: Callable[[], Any], told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        make()


def test_a_layer_that_is_not_the_last_or_a_network_in_chunks_is_refused() -> None:
    z, cond = Toy().example()
    t = torch.ones(2)
    u = Decoded(Toy(), heads=4).build(ROLES, device=CPU, dtype=torch.float32)["student"]  # the last that is defined
    assert isinstance(u, Decoder) and u.layer != "net.out"
    with pytest.raises((ValueError, RuntimeError)):
        Decoder(u.u, "net.then.0", GRID)(z, t, t, {**cond, "text": cond["text"][:1]})
    causal = toy(causal=True).build(ROLES, device=CPU, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"makes chunks of \(2, 2\) frames"):
        ParallelDecoding(1.0, 1, 8)(causal, data().batch([0, 1]), Rng.seeded(0), Shared())
