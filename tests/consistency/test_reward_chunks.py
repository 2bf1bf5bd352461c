"""Reward fine-tuning of students in chunks: each chunk after the sample's own, on a law whose answer is known.

x¹ ~ N(0, 1), x² = .8 x¹ + .6 ε² (`tests.chain`), of which A = a x² wants more.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from flowmap_consistency import reward as methods
from flowmap_consistency.reward_matching import Forms, RewardMatching
from flowmap_consistency.versions import Keeps, Versions
from flowmap_far import Far
from torch import Tensor, nn

from flowmap import AdamW, Batch, Rng, Stage, TensorData, sample
from flowmap._types import Cache, Cond, Latent, Shared, Time
from flowmap.derivative import Derivative, ForwardMode, MeanVelocity
from flowmap.model import Wrapped
from flowmap.objectives import equipped
from flowmap.testing import counting
from flowmap.training.loop import Trainer
from tests.chain import Chain, drawn
from tests.consistency.test_reward import CPU, ROLES, SCORES, matching, settings
from tests.test_planted_defects import planted
from tests.toys import Toy, data

SLOPE = 0.3
PLAIN = Forms(scaled=False, anchor=0.0, clip=1.0, beta=0.5)
MODULE = "flowmap_consistency.reward_matching"
READ = (0.8, 1.0)
"""How much of A a chunk has in it: E[x² | x¹] = .8 x¹, and x² itself."""
STD = (1.0, 0.6)
"""Of a chunk, after what was before it."""


class Shifted(Wrapped):
    """u_old and of each chunk a number, which learns."""

    def __init__(self) -> None:
        super().__init__(Chain().requires_grad_(False))
        self.by = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        u: Latent = self.u(z, t, r, cond, cache)
        return u + self.by.reshape(1, 2, 1, 1, 1) if z.shape[1] == 2 else u

    def trained(self) -> dict[str, nn.Parameter]:
        return {"by": self.by}


@frozen
class At:
    t: float
    r: float

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        return torch.full((n,), self.t, dtype=torch.float64), torch.full((n,), self.r, dtype=torch.float64)


def best(form: Forms, t: float, r: float) -> Tensor:
    """Δ* of each chunk, Cov(E[A | x^{≤k}], ū^k | z^k, x^{<k}) / β = -(a_k c_k² / β) t D_r / D_t³."""
    found = []
    for read, c in zip(READ, STD, strict=True):
        D_t, D_r = (((1 - s) ** 2 * c**2 + s**2) ** 0.5 for s in (t, r))
        found.append(-SLOPE * read * c**2 / form.beta * t * D_r / D_t**3)
    return torch.tensor(found, dtype=torch.float64)


def pull(share: float, t: float, r: float, derivative: Derivative = ForwardMode()) -> tuple[Tensor, Tensor]:  # noqa: B008
    """(the gradient by each chunk's number at a share of Δ*, its standard error), over 40 batches of 5000 samples."""
    number, n, found = 2, 2500, []
    student = Shifted()
    u = Keeps()(student, data(1).batch([0]))
    made = RewardMatching(SCORES, PLAIN, number, 1, times=At(t, r), derivative=derivative)
    with torch.no_grad():
        student.by.copy_(share * best(PLAIN, t, r))  # old and reference are where it began
    for k in range(40):
        noise, rng = drawn(number * n, seed=100 + k), Rng.seeded(7, k)
        x = torch.cat([noise[:, :1], 0.8 * noise[:, :1] + 0.6 * noise[:, 1:]], 1)
        A = SLOPE * x[:, 1, 0, 0, 0]
        raw, _ = made._pair(u, *made._after(u, x, {}, rng), A, [rng.fork(1, i) for i in range(number)])
        found.append(torch.autograd.grad(raw.mean(), student.by)[0])
    each = torch.stack(found)
    return each.mean(0), each.std(0) / len(each) ** 0.5


@pytest.mark.parametrize("t, r", [(0.7, 0.7), (0.9, 0.0), (0.6, 0.25), (1.0, 0.4)])
def test_each_chunk_moves_by_its_covariance_after_what_was_before(t: float, r: float) -> None:
    mean, error = pull(1.0, t, r)
    assert bool((mean.abs() < 4 * error).all()), (mean, error)
    half, error = pull(0.5, t, r)
    assert bool((half.abs() > 8 * error).all()), (half, error)


def test_on_the_diagonal_that_is_the_velocity_of_the_law_that_has_more() -> None:
    """x¹ of mean .8 a / β, and x² of a mean more by .36 a / β after the same x¹: N(m + a c²/β, c²), chunk by chunk."""
    t, z = torch.full((1,), 0.7, dtype=torch.float64), drawn(1)
    for k, (read, c) in enumerate(zip(READ, STD, strict=True)):
        D2 = (1 - t) ** 2 * c**2 + t**2
        more = SLOPE * read * c**2 / PLAIN.beta
        # v(z) of N(m, c²): (t - (1 - t) c²) / D_t² (z - (1 - t) m) - m
        v = [(t - (1 - t) * c**2) / D2 * (z[:, k] - (1 - t) * m) - m for m in (0.0, more)]
        torch.testing.assert_close((v[1] - v[0]).flatten(), best(PLAIN, 0.7, 0.7)[k : k + 1])


class Moved:
    """A tangent that moves the history, too."""

    def __call__(self, u: MeanVelocity, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        def along(h: float) -> Latent:
            return u(z + h * v, t + h, r, {**cond, "clean": cond["clean"] + h * v})

        return (along(1e-4) - along(-1e-4)) / 2e-4


CALL = "u.teacher_forcing(x[own], select(cond, own), copy(rng))"
DEFECTS = {
    "no history": (CALL, "(x[own], select(cond, own))"),
    "the history of another sample": (
        CALL,
        "(x[own], u.teacher_forcing(x[own].roll(1, 0), select(cond, own), copy(rng))[1])",
    ),
    "half of the history": (CALL, "(x[own], u.teacher_forcing(x[own] / 2, select(cond, own), copy(rng))[1])"),
}


@pytest.mark.parametrize("what", DEFECTS)
def test_a_mistake_in_the_history_is_seen(what: str) -> None:
    with planted(MODULE, *DEFECTS[what]):
        mean, error = pull(1.0, 0.9, 0.0)
    assert bool((mean.abs() > 8 * error).any()), (mean, error)


def test_a_tangent_that_moves_the_history_is_seen() -> None:
    mean, error = pull(1.0, 0.9, 0.0, Moved())
    assert bool((mean.abs() > 8 * error).any()), (mean, error)


# ------------------------------------------------------------------ samples, frames, calls
def test_samples_are_those_of_the_sampler_in_chunks() -> None:
    """Of the old policy, each chunk after its own, by the exact map of any number of steps the law itself."""
    u = Keeps()(Shifted(), data(1).batch([0]))
    made = matching(number=2, steps=(3,))
    x, _ = made._made(u, Batch(drawn(50_000), {}, {}), Rng.seeded(5))
    law = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(torch.cov(x[:, :, 0, 0, 0].T), law, atol=0.02, rtol=0)
    own = Rng.seeded(5).fork(0x5A3B1E, 0)
    torch.testing.assert_close(
        x[:50_000], sample(Chain(), own.noise_like(drawn(50_000)), {}, 3, rng=own), rtol=0, atol=1e-12
    )


def test_an_iteration_costs_a_jump_a_chunk_and_step_and_the_pairs_what_they_do_at_once() -> None:
    """Two chunks: 2 · 4 F to make them, and 4 · (1 G + 1 F + 1 F + ½ · 2 F), each of all chunks in one call."""
    counted = counting(Toy(causal=True).build(ROLES, device=CPU, dtype=torch.float32))
    method = methods.nft(SCORES, **settings())
    nets = equipped(counted, method.equips, data(1).batch([0]))
    for u in counted.values():
        u.reset()
    stage = Stage(method, 100, batch=8, ema=None, optimizer=AdamW(1e-3))
    Trainer(nets, stage, data(32, Toy(causal=True))).step(0)
    assert (counted["student"].graph, counted["student"].plain) == (4 * 4 * 8, (8 + 12) * 4 * 8)


def far() -> tuple[Versions, Batch]:
    spec = evolve(Far().tiny(), partition=(1, 2, 1, 1), full=2, long=1.0)
    u = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    x, c = spec.example(2)
    batch = Batch(x[:, :5], c, {})
    return Keeps()(u, batch), batch


def test_all_samples_of_a_draw_have_the_same_frames_and_draws_have_others() -> None:
    """Of a network that compresses, whose prefix is drawn; its history is the sample's own."""
    u, batch = far()
    made, seen = matching(number=3, steps=(1,)), set()
    x, c = made._made(u, batch, Rng.seeded(1))
    for j in range(12):
        frames, cond = made._after(u, x, c, Rng.seeded(2, j))
        before = cond["history"].shape[1] if "history" in cond else 0
        seen.add((before, frames.shape[1]))
        assert len(frames) == len(x) == 6 and bool((cond["text"] == c["text"]).all())
        if before:
            assert torch.equal(cond["history"], x[:, :before])
    assert len(seen) > 2
    on = CALL.replace("copy(rng)", "rng")  # a stream that goes on: other frames for other samples
    with planted(MODULE, CALL, on), pytest.raises(RuntimeError):
        [made._after(u, x, c, Rng.seeded(2, j)) for j in range(12)]


def test_it_trains_a_student_that_compresses_its_history() -> None:
    u, batch = far()
    c = {name: value.float() for name, value in batch.cond.items()}
    pool = TensorData(batch.x, c, {name: 0 * value[:1] for name, value in c.items()})
    before = {name: p.detach().clone() for name, p in u.trained().items()}
    made = methods.nft(SCORES, **settings(number=2, pairs=2))
    loop = Trainer({"student": u}, Stage(made, 4, batch=2, ema=None, optimizer=AdamW(1e-3)), pool)
    for iteration in range(2):
        logs = loop.read(loop.step(iteration), iteration)
    assert logs["student/skipped"] == 0.0
    changed = {name: not torch.equal(p, before[name]) for name, p in u.trained().items()}
    assert any(changed[n] for n in changed if "." in n and not n.startswith(("old.", "reference.")))
    assert not any(changed[n] for n in changed if n.startswith("reference."))


def test_a_student_with_a_noisy_context_is_refused() -> None:
    u = Toy(causal=True).build(ROLES, device=CPU, dtype=torch.float32)["student"]
    u.history_noise = 0.1
    nets: Any = {"student": Keeps()(u, data(1).batch([0]))}
    with pytest.raises(ValueError, match=r"the student's history_noise = 0\.1: must be 0"):
        matching()(nets, data(4).batch([0, 1]), Rng.seeded(0), Shared())
