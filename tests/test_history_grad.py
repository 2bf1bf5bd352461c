"""A gradient through the history, Self Gradient Forcing: what is detached, what is not, and in which forms."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmap import Batch, FlowMap, Rng, Stage
from flowmap._types import Cond, Latent, Role, Shared
from flowmap.chunked import HistoryGrad
from flowmap.methods import anyflow
from flowmap.objectives.distribution_matching import DistributionMatching
from flowmap.rollout import ConsistencySimulation, FlowMapBackwardSimulation, consistency_step, walk
from flowmap.times import Diagonal
from flowmap.training.loop import Trainer
from tests.chain import Chain, Joint, covariance, drawn
from tests.methods.test_costs import BATCH, ROLES
from tests.test_planted_defects import planted
from tests.toys import Toy, data

GRID = torch.tensor([1.0, 0.7, 0.3, 0.0], dtype=torch.float64)
FORMS: list[tuple[HistoryGrad, bool]] = [(True, False), (True, True), ("packed", False)]
forms = pytest.mark.parametrize("history_grad, replay", FORMS, ids=["held", "replay", "packed"])
WEIGHTS = torch.tensor([0.3, -1.0, 0.7, 2.0], dtype=torch.float64).reshape(1, 4, 1, 1, 1)


def gradients(u: FlowMap, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*u.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for name, p, g in zip(names, parameters, found, strict=True)}


def by_hand(u: Chain, noise: Latent) -> Latent:
    """Every chunk and every memory written out, frames alone detached."""
    h: Tensor | float = 0.0
    made = []
    for k, z in enumerate(noise.split(1, dim=1)):
        m, s = u.read * h, u.std if k else u.first
        for t, r in pairwise(GRID):
            now, then = (((1 - a) ** 2 * s**2 + a**2).sqrt() for a in (t, r))
            z = (1 - r) * m + then / now * (z - (1 - t) * m)
        made.append(z)
        h = u.write * z.detach() + u.keep * h
    return torch.cat(made, 1)


def walked(u: FlowMap, noise: Latent, history_grad: HistoryGrad, replay: bool, cond: Cond | None = None) -> Latent:
    return walk(u, noise, cond or {}, GRID, Rng.seeded(3), history_grad=history_grad, replay=replay)


@forms
def test_the_gradient_is_that_of_everything_but_the_frames(history_grad: HistoryGrad, replay: bool) -> None:
    """A memory of a memory, three jumps a chunk: against autograd of the equations themselves, in float64."""
    u, noise = Chain(keep=0.5, read=0.7), drawn(5, 4)
    x, wanted = walked(u, noise, history_grad, replay), by_hand(u, noise)
    torch.testing.assert_close(x, wanted, rtol=0, atol=1e-12)
    mine, theirs = (gradients(u, (WEIGHTS * y**2).sum()) for y in (x, wanted))
    assert {name for name, g in theirs.items() if float(g.abs()) > 1e-3} == {"read", "write", "keep", "std", "first"}
    for name, g in theirs.items():
        if name != "scale":
            torch.testing.assert_close(mine[name], g, rtol=1e-10, atol=1e-10)


@forms
def test_the_last_chunk_teaches_how_the_ones_before_are_written(history_grad: HistoryGrad, replay: bool) -> None:
    u, noise = Chain(keep=0.5), drawn(3, 4)
    last, first = (
        gradients(u, (walked(u, noise, history_grad, replay)[:, k] ** 2).sum()) for k in (-1, 0)
    )  # fmt: skip
    frozen = gradients(u, (walked(u, noise, False, replay)[:, -1] ** 2).sum())
    assert float(last["write"].abs()) > 0.1 and float(last["keep"].abs()) > 0.1
    assert float(first["write"]) == 0.0 and float(last["first"]) == 0.0  # no gradient goes through frames
    assert float(frozen["write"]) == 0.0 and float(frozen["keep"]) == 0.0
    torch.testing.assert_close(frozen["std"], last["std"], rtol=1e-12, atol=1e-12)


def toy(**changes: Any) -> FlowMap:
    u = Toy(causal=True, **changes).build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float64)
    with torch.no_grad():
        for k, p in enumerate(u["student"].parameters()):
            p.add_(0.1 * Rng.seeded(k).noise_like(p))
    return u["student"]


def clip() -> tuple[Latent, Cond]:
    rng = Rng.seeded(9)
    x, text = (torch.zeros(3, *shape, dtype=torch.float64) for shape in ((6, 2, 2, 2), (3,)))
    return rng.noise_like(x), {"text": rng.noise_like(text)}


@forms
@pytest.mark.parametrize("step", ["flow_map", "consistency"])
def test_a_second_pass_is_the_first(history_grad: HistoryGrad, replay: bool, step: str) -> None:
    """The numbers of a rollout without a gradient, and one gradient, for a network with attention."""
    u, (z, c) = toy(), clip()
    rollout: Any = FlowMapBackwardSimulation((4,)) if step == "flow_map" else ConsistencySimulation()
    kind = type(rollout)

    def run(**how: Any) -> Latent:
        made: Latent = kind(**({"steps": (4,)} if step == "flow_map" else {}), **how)(u, z, c, Rng.seeded(5))
        return made

    x, held = run(replay=replay, history_grad=history_grad), run(history_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(x, run(), rtol=0, atol=1e-12)
    mine, wanted = gradients(u, x.square().sum()), gradients(u, held.square().sum())
    for name, g in wanted.items():
        torch.testing.assert_close(mine[name], g, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rng", [Rng.seeded(3), None], ids=["shared", "by_noise"])
@pytest.mark.parametrize("grad_last", [1, 2, None])
def test_a_packed_pass_draws_what_the_walk_drew(grad_last: int | None, rng: Rng | None) -> None:
    """Of a step that noises again, each chunk from its own stream; any other draw is another video."""
    u, noise = Chain(keep=0.5), drawn(3, 4)
    forms: list[HistoryGrad] = [True, "packed"]
    settings: Any = {"step": consistency_step, "grad_last": grad_last}
    held, at_once = (walk(u, noise, {}, GRID, rng, history_grad=form, **settings) for form in forms)
    torch.testing.assert_close(at_once, held, rtol=0, atol=1e-12)
    mine, wanted = (gradients(u, x.square().sum()) for x in (at_once, held))
    for name, g in wanted.items():
        torch.testing.assert_close(mine[name], g, rtol=1e-10, atol=1e-10)


def test_the_gradient_is_a_difference_at_fixed_frames() -> None:
    """No autograd: the parameters moved along a direction, every history remembered anew from the same frames."""
    u, (z, c) = toy(), clip()
    with torch.no_grad():
        frames = walked(u, z, False, False, c).split(u.chunks(6), dim=1)
    way = {name: Rng.seeded(k).noise_like(p) for k, (name, p) in enumerate(u.named_parameters())}

    @torch.no_grad()
    def value(h: float) -> float:
        for name, p in u.named_parameters():
            p.add_(h * way[name])
        made, cache = [], None
        for noise, x in zip(z.split(u.chunks(6), dim=1), frames, strict=True):
            y = noise
            for t, r in pairwise(GRID):
                y = u.jump(y, t.expand(3), r.expand(3), c, cache)
            made.append(y)
            cache = u.extend(cache, x, c)
        for name, p in u.named_parameters():
            p.sub_(h * way[name])
        return float(torch.cat(made, 1).square().sum())

    found = gradients(u, walked(u, z, True, False, c).square().sum())
    slope = sum(float((g * way[name]).sum()) for name, g in found.items())
    assert (value(1e-5) - value(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-6)
    frozen = gradients(u, walked(u, z, False, False, c).square().sum())
    assert abs(sum(float((g * way[name]).sum()) for name, g in frozen.items()) / slope - 1) > 1e-2


def taught(history_grad: HistoryGrad, steps: int = 60) -> float:
    """`write` after DMD with the exact scores of teacher and student, of which `write` alone is wrong, and learns."""
    u, rng = Chain(read=0.5, write=1.0), Rng.seeded(0)
    rollout = FlowMapBackwardSimulation((2,), shift=1.0, history_grad=history_grad)
    objective = DistributionMatching(rollout, Diagonal(shift=1.0, low=0.02, high=0.98), w=1.0)
    batch = Batch(drawn(4096), {}, {})
    for k in range(steps):
        a = float((u.read * u.write).detach())
        mine = torch.tensor([[1.0, a], [a, a**2 + 0.36]], dtype=torch.float64)
        nets: Mapping[Role, FlowMap] = {"student": u, "teacher": Joint(covariance(0.8)), "critic": Joint(mine)}
        (g,) = torch.autograd.grad(objective(nets, batch, rng.fork(k), Shared()).value, u.write, allow_unused=True)
        with torch.no_grad():
            u.write -= 0 if g is None else 2.0 * g
    return float(u.write.detach())


@pytest.mark.parametrize("history_grad, ends", [(False, 1.0), (True, 1.6), ("packed", 1.6)])
def test_only_with_it_the_history_is_written_as_the_teacher_would_have_it(
    history_grad: HistoryGrad, ends: float
) -> None:
    """x² = read · write · x¹ + 0.6 ε² with read = 0.5 held, of a teacher with 0.8: write goes to 1.6, or nowhere."""
    assert taught(history_grad) == pytest.approx(ends, abs=0.02)


class Counted(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.called, self.written = [0, 0], [0, 0]  # without, with a graph

    def forward(self, *given: Any) -> Latent:
        self.called[torch.is_grad_enabled()] += 1
        return super().forward(*given)

    def extend(self, *given: Any) -> Any:
        self.written[torch.is_grad_enabled()] += 1
        return super().extend(*given)


@pytest.mark.parametrize(
    "history_grad, replay, called, written",
    [
        (False, False, [0, 12], [3, 0]),
        (True, False, [0, 12], [0, 3]),
        (False, True, [0, 24], [3, 0]),
        (True, True, [0, 24], [0, 2 * 6]),
        ("packed", False, [12, 3], [3, 3 * 4]),
    ],
)
def test_what_it_costs(history_grad: HistoryGrad, replay: bool, called: list[int], written: list[int]) -> None:
    """Four chunks, three jumps: K - 1 extends, with a graph; K (K - 1) / 2 in each pass of a replay. A packed pass is a
    walk without a graph and a call a jump, in which `Chain` writes its history itself."""
    u = Counted()
    walked(u, drawn(2, 4), history_grad, replay).sum().backward()
    assert (u.called, u.written) == (called, written)


@pytest.mark.parametrize("spec", [Toy(causal=True, shared=True, checkpointing=True), Toy(causal=True)], ids=str)
def test_it_trains(spec: Toy) -> None:
    """Through the trainer, adapters and recomputation: other parameters than without, the same in every form."""
    ended = []
    for how in ({}, {"history_grad": True}, {"history_grad": True, "replay": True}, {"history_grad": "packed"}):
        nets = spec.build(ROLES, device=torch.device("cpu"), dtype=torch.float32)
        loop = Trainer(nets, Stage(anyflow.on_policy(steps=(2,), **how), 2, batch=BATCH), data(16, spec))  # type: ignore[arg-type]
        for iteration in range(2):
            loop.step(iteration)
        ended.append(torch.cat([p.detach().flatten() for p in nets["student"].trained().values()]))
    assert float((ended[1] - ended[0]).abs().max()) > 2e-5
    for other in ended[2:]:
        torch.testing.assert_close(other, ended[1], atol=5e-6, rtol=0)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match=r"history_grad = 'packed': must be True with replay = True"):
        FlowMapBackwardSimulation(replay=True, history_grad="packed")
    with pytest.raises(
        ValueError, match=r"ConsistencySimulation.history_grad = 'pack': must be .*did you mean 'packed'"
    ):
        ConsistencySimulation(history_grad="pack")  # type: ignore[arg-type]

    class Compressing(Chain):
        def packed(self, x: Latent, cond: Cond) -> Cond | None:
            return None

    with pytest.raises(ValueError, match="one call for 4 chunks is not what this Compressing generates"):
        walked(Compressing(), drawn(2, 4), "packed", False)


ROLLOUT, CHUNKED = "flowmap.rollout", "flowmap.chunked"
LAST = "(seen_later(x, τ, stream(z, k)),)"
DEFECTS = [
    ("a graph through the frames, too", CHUNKED, "else x.detach()", "else x"),
    ("the history is a snapshot all the same", ROLLOUT, "torch.is_grad_enabled() and history_grad):", "False):"),
    ("a replay forgets all but the last chunk", ROLLOUT, "(*finished, seen_later(x, τ, stream(z, k)))", LAST),
    ("a packed pass begins at the noise", CHUNKED, "made % (len(grid) - 1) == first", "made % (len(grid) - 1) == 0"),
    ("a packed pass has other clean frames", CHUNKED, "u.packed(x, cond)", "u.packed(torch.cat(entered, 1), cond)"),
]


def all_tests() -> None:
    for history_grad, replay in FORMS:
        test_the_gradient_is_that_of_everything_but_the_frames(history_grad, replay)
        test_the_last_chunk_teaches_how_the_ones_before_are_written(history_grad, replay)
        test_a_second_pass_is_the_first(history_grad, replay, "consistency")


@pytest.mark.parametrize("module, old, new", [pytest.param(*rest, id=what) for what, *rest in DEFECTS])
def test_a_mistake_is_seen(module: str, old: str, new: str) -> None:
    with planted(module, old, new), pytest.raises((AssertionError, RuntimeError)):
        all_tests()
