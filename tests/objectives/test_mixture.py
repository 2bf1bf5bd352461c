"""Each sample belongs to one objective: the shares, the mean, and what a batch that is split sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from attrs import define, field
from torch import nn

from flowmap import Batch, Rng
from flowmap._types import Cache, Cond, Latent, Mean, Role, Shared, Time
from flowmap.objectives import Equip, Equips, Loss, Networks, mixture
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.objectives.mixture import Mixture
from flowmap.testing import GaussianFlowMap
from flowmap.times import Diagonal, Triangle
from tests.objectives.test_flow_map_matching import MEAN, STD, Wide, data


@define
class Told:
    """An objective whose loss is the mean of x, and that remembers its batches and its noise."""

    role: Role = "student"
    batches: list[Batch] = field(factory=list)
    noise: list[torch.Tensor] = field(factory=list)

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({self.role})

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        self.batches.append(batch)
        self.noise.append(rng.noise_like(batch.x))
        return Loss(batch.x.mean(), {"x": Mean.of(batch.x[:, 0]), self.role: Mean.of(batch.x[:, 0])})


def numbered(n: int) -> Batch:
    x = torch.arange(1.0, n + 1)[:, None]
    return Batch(x, {"text": 10 * x}, {"text": torch.zeros(1, 1), "own": -x})


def test_every_sample_belongs_to_one_with_its_condition() -> None:
    a, b = Told("student"), Told("teacher")
    loss = Mixture(((0.75, a), (0.25, b)))({}, numbered(16), Rng.seeded(0), Shared())
    (mine,), (other,) = a.batches, b.batches
    assert (len(mine), len(other)) == (12, 4)
    assert sorted([*mine.x[:, 0].tolist(), *other.x[:, 0].tolist()]) == [*range(1, 17)]
    for part in (mine, other):
        assert torch.equal(part.cond["text"], 10 * part.x) and torch.equal(part.null["own"], -part.x)
        assert torch.equal(part.null["text"], torch.zeros(1, 1))
    torch.testing.assert_close(loss.value, torch.tensor(8.5))  # the mean over samples, not over objectives
    assert float(loss.logs["x"].value) == 8.5 and int(loss.logs["x"].count) == 16
    assert int(loss.logs["student"].count) == 12 and int(loss.logs["teacher"].count) == 4


def test_who_belongs_where_changes_from_draw_to_draw() -> None:
    seen = set()
    for seed in range(8):
        a = Told()
        Mixture(((0.5, a), (0.5, Told())))({}, numbered(8), Rng.seeded(seed), Shared())
        seen.add(tuple(a.batches[0].x[:, 0].tolist()))
    assert len(seen) > 4


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_micro_batches_see_what_the_whole_does(size: int) -> None:
    """The same samples, the same noise: the accumulated loss is that of the whole batch."""
    n, batch = 8, numbered(8)
    objective = Mixture(((0.5, a := Told()), (0.5, b := Told())))
    whole = objective({}, batch, Rng((0, 7), tuple(range(n)), n), Shared())
    seen = [{float(x): float(e) for x, e in zip(o.batches[0].x, o.noise[0], strict=True)} for o in (a, b)]
    a.batches.clear(), a.noise.clear(), b.batches.clear(), b.noise.clear()
    total = torch.zeros(())
    for start in range(0, n, size):
        at = tuple(range(start, min(start + size, n)))
        part = Batch(batch.x[list(at)], {"text": batch.cond["text"][list(at)]}, {"text": batch.null["text"]})
        total += len(at) / n * objective({}, part, Rng((0, 7), at, n), Shared()).value
    torch.testing.assert_close(total, whole.value)
    for o, told in zip((a, b), seen, strict=True):
        xs, es = torch.cat([p.x for p in o.batches]), torch.cat(o.noise)
        assert {float(x): float(e) for x, e in zip(xs, es, strict=True)} == told


def test_an_objective_without_a_sample_is_not_called() -> None:
    a, b = Told(), Told()
    seen = [Mixture(((0.5, a), (0.5, b)))({}, numbered(1), Rng.seeded(seed), Shared()) for seed in range(40)]
    assert all(float(loss.value) == 1.0 for loss in seen)
    assert len(a.batches) + len(b.batches) == 40 and min(len(a.batches), len(b.batches)) > 8


def test_objectives_draw_their_noise_apart() -> None:
    a, b = Told(), Told()
    for share in (1.0, 0.0):
        Mixture(((share, a), (1 - share, b)))({}, numbered(4), Rng.seeded(0), Shared())
    assert not torch.equal(a.noise[0], b.noise[0])


@define
class Overflows:
    """An objective that is not finite: in what it makes of the network, and in what it compares it with."""

    called: int = 0
    needs = frozenset[Role]({"student"})

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        self.called += 1
        u = nets["student"](batch.x, *torch.full((2, len(batch)), 0.5, dtype=batch.x.dtype), batch.cond)
        return Loss((u * torch.inf - torch.nan).square().mean() + (u - u.detach()).abs().sqrt().sum())


class Inside(GaussianFlowMap):
    """A map that overflows within where r = t, and has a weight that is used outside of `forward`."""

    def __init__(self) -> None:
        super().__init__(MEAN, STD)
        self.other = nn.Parameter(torch.ones(()))

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return (self.mean * torch.where(r == t, torch.inf, 1.0)[:, None]).tanh() + super().forward(z, t, r, cond)


@pytest.mark.parametrize("outside", [False, True])
def test_what_overflows_within_a_network_in_such_a_call_costs_no_step(outside: bool) -> None:
    class Calls(Told):
        def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
            u, t = nets["student"], torch.ones(len(batch), dtype=batch.x.dtype)
            assert isinstance(u, Inside)
            if self.role == "student":
                return Loss(u(batch.x, t, 0 * t, batch.cond).square().mean())
            y = u(batch.x, t, t, batch.cond) * u.other
            return Loss((y * torch.inf if outside else y).square().mean())

    student = Inside()
    nets: Any = {"student": student}
    both = Mixture(((1.0, Calls("student")), (0.0, Calls("critic"))))
    both(nets, data(4), Rng.seeded(0), Shared()).value.backward()
    alone = {name: p.grad for name, p in student.named_parameters()}
    student.zero_grad()
    both(nets, data(4), Rng.seeded(0), Shared(ranks=2)).value.backward()
    for name, p in student.named_parameters():
        assert isinstance(p, nn.Parameter) and p.grad is not None  # as on the rank that has a sample for it
        assert torch.equal(p.grad, torch.zeros(()) if alone[name] is None else alone[name]), name


@pytest.mark.parametrize("calls", ["student", "no network"])
def test_a_call_that_is_only_made_for_other_ranks_costs_no_step(calls: str) -> None:
    """Its share of this rank is empty: 0 times what is not finite would not be 0."""

    def gradients(objective: Any, ranks: int) -> list[torch.Tensor]:
        student = GaussianFlowMap(MEAN, STD)
        nets: Any = {"student": student}
        flow = FlowMapMatching(Diagonal())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mixture, "_silent", lambda p: p)  # as it is with weights in pieces
            loss = Mixture(((1.0, flow), (0.0, objective)))(nets, data(8), Rng.seeded(0), Shared(ranks=ranks))
        assert loss.value.isfinite() and loss.finite is not None and loss.finite.all()
        return [loss.value.detach(), *torch.autograd.grad(loss.value, [*student.parameters()])]

    bad = Overflows() if calls == "student" else Told("student")
    if isinstance(bad, Told):
        bad = define(type("Worse", (Told,), {"__call__": lambda self, *a: Loss(torch.tensor(torch.nan))}))()
    alone, beside = gradients(bad, ranks=1), gradients(bad, ranks=2)
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(alone, beside, strict=True))
    assert not isinstance(bad, Overflows) or bad.called == 1


def test_what_is_not_finite_is_told_by_sample() -> None:
    @define
    class Some(Told):
        def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
            loss = super().__call__(nets, batch, rng, shared)
            each = torch.where(batch.x[:, 0] == 3.0, torch.nan, batch.x[:, 0])
            return Loss(each.mean(), loss.logs, each.isfinite() if self.role == "student" else None)

    apart, together = (Mixture(((0.5, Told()), (0.5, Some(role)))) for role in ("student", "teacher"))
    for seed in range(4):
        told, all_of = (m({}, numbered(8), Rng.seeded(seed), Shared()) for m in (apart, together))
        assert told.finite is not None and all_of.finite is not None
        hit = not all_of.value.isfinite()
        assert told.finite.tolist() == [not hit or x != 3.0 for x in range(1, 9)]
        assert int((~all_of.finite).sum()) == 4 * hit


def test_each_part_has_means_of_its_own() -> None:
    shared = Shared()

    class Asks(Told):
        def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
            shared.mean("x", batch.x[:, 0], torch.ones(len(batch), dtype=torch.bool))
            return super().__call__(nets, batch, rng, shared)

    Mixture(((0.5, a := Asks()), (0.5, b := Asks())))({}, numbered(8), Rng.seeded(0), shared)
    shared.next()
    sums = {f"{k}/x": [float(o.batches[0].x.sum()), len(o.batches[0].x)] for k, o in enumerate((a, b))}
    assert shared.state() == sums and sums["0/x"] != sums["1/x"]


def test_the_gradient_is_that_of_the_batch() -> None:
    """Of two flow-map matchings at the true map: none."""
    parts = [FlowMapMatching(Wide(times), velocity="teacher") for times in (Diagonal(), Diagonal(shift=5.0))]
    student = GaussianFlowMap(MEAN, STD)
    nets: Any = {"student": student, "teacher": GaussianFlowMap(MEAN, STD).requires_grad_(False)}
    value = Mixture(((0.5, parts[0]), (0.5, parts[1])))(nets, data(64), Rng.seeded(0), Shared()).value
    assert max(float(g.abs()) for g in torch.autograd.grad(value, [*student.parameters()])) < 1e-9


def test_it_needs_what_its_parts_do() -> None:
    assert Mixture(((0.5, Told("critic")), (0.5, Told("teacher")))).needs == {"critic", "teacher"}
    teacher = FlowMapMatching(Triangle(), velocity="teacher")
    assert Mixture(((1.0, teacher),)).needs == {"student", "teacher"}


def test_what_a_part_equips_is_equipped() -> None:
    def head(u: Any, batch: Batch) -> Any:
        return u

    class Headed(Told, Equips):
        @property
        def equips(self) -> Mapping[Role, Equip]:
            return {"critic": head}

    assert Mixture(((0.5, Told()), (0.5, Headed()))).equips == {"critic": head}
    assert Mixture(((1.0, Told()),)).equips == {}


@pytest.mark.parametrize("shares", [(0.5, 0.4), (1.5, -0.5), ()])
def test_shares_that_are_no_whole_are_named(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"Mixture.parts have the shares \[.*\]: must be at least 0 and sum to 1"):
        Mixture([(share, Told()) for share in shares])
