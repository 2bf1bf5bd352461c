"""APT 2: relativistic losses in closed form, R1 and R2 against exact penalties, student forcing against autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_consistency.aapt import HEADS, aapt, stages
from flowmap_consistency.adversarial import Made
from flowmap_consistency.heads import Judge
from flowmap_consistency.relativistic import (
    STUDENT_FORCING,
    RelativisticAdversarial,
    RelativisticDiscrimination,
    Segments,
)
from flowmap_far import Far
from torch import Tensor, nn
from torch.nn import functional as F

from flowmap import AdamW, Batch, FlowMap, Recipe, Rng, Stage, TensorData, distill
from flowmap._types import Cache, Cond, Latent, Shared, Time
from flowmap.method import Update
from flowmap.methods import anyflow
from flowmap.objectives import Loss
from flowmap.rollout import ConsistencySimulation
from flowmap.times import Diagonal
from tests.chain import Chain, drawn
from tests.consistency.judges import CPU, calls, toy, trainer
from tests.test_planted_defects import planted
from tests.toys import Toy

N, K = 64, 3
A, B = 0.7, -0.4  # D_k = A x^k + B x^{k-1}: a logit a chunk, after the one before it


class Features(FlowMap):
    """Its block gives out (x^k, x^{k-1}) of a chunk as one token; its memory is the chunk before, with a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()
        self.times: list[Tensor] = []

    def chunks(self, frames: int) -> tuple[int, ...]:
        return (1,) * frames

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        return x

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        assert torch.equal(t, r)
        self.times.append(t)
        before = torch.zeros_like(z) if cache is None else cache
        self.block(torch.cat([z.flatten(1), before.flatten(1)], 1)[:, None])
        return z

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.block]


class Line(nn.Module):
    """[B, 1, 2] -> w · token, or its sine."""

    def __init__(self, bent: bool = False) -> None:
        super().__init__()
        self.weight, self.bent = nn.Parameter(torch.tensor([A, B], dtype=torch.float64)), bent

    def forward(self, tokens: Any) -> Tensor:
        found = tokens[0][:, 0] @ self.weight
        return torch.sin(found) if self.bent else found


def critic(bent: bool = False) -> Judge:
    return Judge(Features(), (0,), Line(bent))


X, DATA = drawn(N, K, seed=3), Batch(drawn(N, K, seed=4) + 0.5, {}, {})


def logits(x: Tensor, w: Tensor | None = None) -> Tensor:
    """[N, K] by hand."""
    a, b = (A, B) if w is None else w
    x = x[:, :, 0, 0, 0]
    return a * x + b * torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def run(objective: Any, nets: Any, seed: int = 0) -> Loss:
    loss: Loss = objective(nets, DATA, Rng.seeded(seed), Shared())
    return loss


# ------------------------------------------------------------------ closed forms
def test_the_students_loss_and_gradient() -> None:
    """L = mean softplus(D(x) - D(x̃)), ∂L/∂D(x̃) = -σ(D(x) - D(x̃)) / (N K); a chunk is in its own logit and the next."""
    x = X.clone().requires_grad_()
    loss = run(RelativisticAdversarial(Made(x)), {"student": Chain(), "critic": critic()})
    (g,) = torch.autograd.grad(loss.value, x)
    gap = logits(DATA.x) - logits(X)
    torch.testing.assert_close(loss.value.detach(), F.softplus(gap).mean())
    s = -torch.sigmoid(gap) / (N * K)
    wanted = A * s + B * torch.cat([s[:, 1:], torch.zeros_like(s[:, :1])], 1)
    torch.testing.assert_close(g[:, :, 0, 0, 0], wanted, rtol=1e-10, atol=1e-14)


def test_the_critics_loss_and_gradient() -> None:
    judge = critic()
    loss = run(RelativisticDiscrimination(Made(X)), {"student": Chain(), "critic": judge})
    (g,) = torch.autograd.grad(loss.value, judge.head.weight)
    w = torch.tensor([A, B], dtype=torch.float64, requires_grad=True)
    wanted = F.softplus(logits(X, w) - logits(DATA.x, w)).mean()  # type: ignore[arg-type]
    torch.testing.assert_close(loss.value, wanted)
    torch.testing.assert_close(g, torch.autograd.grad(wanted, w)[0])


def test_each_side_is_zero_sum_at_a_judge_that_cannot_tell() -> None:
    """log 2 of pairs alike, whatever the logits are: what is compared is relative."""
    for make in (RelativisticAdversarial, RelativisticDiscrimination):
        loss = run(make(Made(DATA.x)), {"student": Chain(), "critic": critic()})
        assert float(loss.value.detach()) == pytest.approx(float(torch.tensor(2.0).log()))


def test_neither_side_leaves_a_gradient_with_the_other() -> None:
    u, judge = Chain(), critic()
    nets = {"student": u, "critic": judge}
    run(RelativisticAdversarial(), nets).value.backward()
    assert judge.head.weight.grad is None and u.read.grad is not None and float(u.read.grad) != 0
    u.zero_grad()
    run(RelativisticDiscrimination(r1=1.0, r2=1.0), nets).value.backward()
    assert all(p.grad is None for p in u.parameters()) and judge.head.weight.grad is not None


# ------------------------------------------------------------------ R1 and R2
def test_r1_and_r2_are_the_exact_penalties_at_a_small_sigma() -> None:
    """E_n |D(x) - D(x + σ n)|² / σ² is the mean over chunks and samples of |∇_x D_k|², of a bent D."""
    judge, sigma, runs = critic(bent=True), 1e-5, 60
    objective = RelativisticDiscrimination(Made(X), r1=1.0, r2=1.0, sigma=sigma)
    found = {"r1": 0.0, "r2": 0.0}
    for seed in range(runs):
        logs = run(objective, {"student": Chain(), "critic": judge}, seed).logs
        for name in found:
            found[name] += float(logs[f"gan/{name}"].total) / float(logs[f"gan/{name}"].count) / sigma**2 / runs
    for name, x in (("r1", DATA.x), ("r2", X)):
        leaf = x.clone().requires_grad_()
        each = judge.by_chunk(leaf, torch.zeros(N), {})
        exact = 0.0
        for k in range(K):
            (g,) = torch.autograd.grad(each[:, k].sum(), leaf, retain_graph=True)
            exact += float(g.square().sum()) / (N * K)
        assert found[name] == pytest.approx(exact, rel=5 * (2 / (N * K * runs)) ** 0.5)


def test_r1_is_of_data_r2_of_samples_and_each_is_added_times_its_weight() -> None:
    def value(**how: float) -> float:
        made = RelativisticDiscrimination(Made(X), **how)
        return float(run(made, {"student": Chain(), "critic": critic()}).value.detach())

    logs = run(RelativisticDiscrimination(Made(X), r1=1.0), {"student": Chain(), "critic": critic(True)}).logs
    one, two = (float(logs[f"gan/{name}"].value) for name in ("r1", "r2"))
    assert one != two  # a bent judge is steeper elsewhere
    plain, first, both = value(), value(r1=2.0), value(r1=2.0, r2=3.0)
    linear = run(RelativisticDiscrimination(Made(X), r1=1.0), {"student": Chain(), "critic": critic()}).logs
    r1, r2 = (float(linear[f"gan/{name}"].value) for name in ("r1", "r2"))
    assert first - plain == pytest.approx(2 * r1, rel=1e-5) and both - first == pytest.approx(3 * r2, rel=1e-5)
    assert "gan/r1" not in run(RelativisticDiscrimination(Made(X)), {"student": Chain(), "critic": critic()}).logs


# ------------------------------------------------------------------ student forcing
def by_hand(u: Chain, noise: Latent) -> Latent:
    """x^k = ε^k - u(ε^k, 1, 0) after h: h <- write sg x + keep h, with a graph."""
    made, h = [], None
    one, zero = torch.ones(len(noise)), torch.zeros(len(noise))
    for z in noise.split(1, dim=1):
        made.append(z - u(z, one, zero, {}, h))
        x = made[-1].detach()
        h = u.write * x if h is None else u.write * x + u.keep * h
    return torch.cat(made, 1)


@pytest.mark.parametrize("replay", [False, True])
def test_the_gradient_goes_through_the_memory_and_through_no_frame(replay: bool) -> None:
    """The whole of the student's step against autograd of the walk and of the loss written out, in float64."""
    u, judge = Chain(keep=0.5, read=0.7), critic()
    rollout = ConsistencySimulation((1.0,), replay, True)
    noise = Rng.seeded(0).noise_like(DATA.x)
    value = run(RelativisticAdversarial(rollout), {"student": u, "critic": judge}).value
    mine = torch.autograd.grad(value, [u.read, u.write, u.keep, u.std, u.first])
    wanted = F.softplus(logits(DATA.x) - logits(by_hand(u, noise))).mean()
    theirs = torch.autograd.grad(wanted, [u.read, u.write, u.keep, u.std, u.first])
    assert all(abs(float(g)) > 1e-4 for g in theirs)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_one_call_a_chunk() -> None:
    asked: list[tuple[float, float]] = []
    u = Chain()
    u.register_forward_pre_hook(lambda _, given: asked.append((float(given[1][0]), float(given[2][0]))))
    STUDENT_FORCING(u, drawn(2, 4), {}, Rng.seeded(0))
    assert asked == [(1.0, 0.0)] * 4


def test_alternating_descent_finds_the_datas_mean_and_what_a_chunk_takes_from_the_one_before() -> None:
    """x¹ = ε¹, x² = read x¹ + .6 ε² against data with .8: the judge sees both chunks."""
    u, judge = Chain(read=0.2), Judge(Features(), (0,), Square())
    x = drawn(512, 2, seed=9)
    batch = Batch(torch.cat([x[:, :1], 0.8 * x[:, :1] + 0.6 * x[:, 1:]], 1), {}, {})
    fool, tell = RelativisticAdversarial(), RelativisticDiscrimination(r1=1.0, r2=1.0)
    nets: Any = {"student": u, "critic": judge}
    for step in range(200):
        for objective, p, rate in ((fool, u.read, 0.3), (tell, judge.head.weight, 0.5)):
            (g,) = torch.autograd.grad(objective(nets, batch, Rng.seeded(step), Shared()).value, p)
            with torch.no_grad():
                p -= rate * g
    assert float(u.read.detach()) == pytest.approx(0.8, abs=0.12)


class Square(nn.Module):
    """w x^k x^{k-1}: sees their covariance alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, tokens: Any) -> Tensor:
        return self.weight * tokens[0][:, 0].prod(-1)


# ------------------------------------------------------------------ segments
def test_pieces_overlap_and_have_the_datas_length() -> None:
    pieces, x = Segments(3, 2), torch.arange(100.0).reshape(1, 100)
    data = -torch.arange(7.0).reshape(1, 7)
    length = pieces.frames(7, 1)
    assert length == 7 + 2 * 4
    found = [*pieces.pairs(x[:, :length], data, 1)]
    assert [f[0].tolist() for f, _ in found] == [[*range(7)], [*range(5, 11)], [*range(9, 15)]]
    assert [r[0].tolist() for _, r in found] == [[-0.0, -1, -2, -3, -4, -5, -6]] + 2 * [[-1, -2, -3, -4, -5, -6]]
    assert Segments().frames(7, 3) == 7 and len([*Segments().pairs(x[:, :7], data, 3)]) == 1
    with pytest.raises(ValueError, match=r"Segments.overlap = 6: a clip has 7 frames, 1 .*: must be below 6"):
        Segments(2, 6).frames(7, 1)


def test_a_long_video_is_made_at_once_and_every_piece_counts() -> None:
    """Against the sum written out: the pieces' mean, the long walk with its own history."""
    u, judge, pieces = Chain(keep=0.5, read=0.7), critic(), Segments(3, 1)
    value = run(RelativisticAdversarial(segments=pieces), {"student": u, "critic": judge}).value
    noise = Rng.seeded(0).noise_like(DATA.x[:, :1].expand(-1, 5, -1, -1, -1))
    x = by_hand(u, noise)
    parts = [(x[:, :3], DATA.x), (x[:, 2:4], DATA.x[:, 1:]), (x[:, 3:5], DATA.x[:, 1:])]
    wanted = torch.stack([F.softplus(logits(real) - logits(fake)).mean() for fake, real in parts]).mean()
    torch.testing.assert_close(value.detach(), wanted.detach())
    (mine,), (theirs,) = (torch.autograd.grad(v, u.write) for v in (value, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------ the method
def test_the_method_is_the_published_one() -> None:
    rollout = ConsistencySimulation((1.0,), False, True)
    fool = RelativisticAdversarial(rollout, HEADS, Diagonal(shift=5.0), Segments())
    tell = RelativisticDiscrimination(rollout, HEADS, Diagonal(shift=5.0), Segments(), 100.0, 100.0, 0.1)
    assert aapt().updates == (Update("student", ((1.0, fool),)), Update("critic", ((1.0, tell),)))
    assert aapt().needs == {"student", "critic"} and "2506.09350" in aapt().citations[0]


@pytest.mark.parametrize("causal, share", [(False, 1), (True, 2)])
def test_it_costs_what_the_table_says(causal: bool, share: int) -> None:
    """1 G + 1 F of the student, 1 F + 5 G of the critic a sample; a call of each chunk counts whole here."""
    found = calls(aapt(), spec=Toy(causal=causal))
    assert found == {"student": (share, share), "teacher": (0, 0), "critic": (5 * share, share)}
    assert calls(aapt(r1=0.0, r2=0.0), spec=Toy(causal=causal))["critic"] == (3 * share, share)


@pytest.mark.parametrize("how", [{}, {"replay": True}, {"segments": 2, "overlap": 0}, {"history_noise": 0.2}], ids=str)
def test_both_sides_learn_in_chunks(how: Any) -> None:
    loop, _ = trainer(aapt(**how), Toy(causal=True, checkpointing=True))
    for iteration in range(2):
        logs = loop.step(iteration)
        assert float(logs["student/gradient_norm"].value) > 0 and float(logs["critic/gradient_norm"].value) > 0


def far(**changes: Any) -> Far:
    return evolve(Far().tiny(), lora=None, partition=(1, 2, 1), long=1.0, causal_critic=True, **changes)


def test_far_has_a_critic_in_chunks_for_it() -> None:
    """Of its own weights, read with its history: a later chunk's logit hears the earlier chunks, none a later one."""
    nets = far().build(frozenset({"student", "critic", "teacher"}), device=CPU, dtype=torch.float32)
    x, c = far().example(2)
    assert nets["critic"].chunks(4) == (1, 2, 1) and nets["teacher"].chunks(4) == (4,)
    judge = HEADS(nets["critic"], Batch(x[:1, :4], {name: v[:1] for name, v in c.items()}, {}))
    t = torch.full((2,), 0.5)
    with torch.no_grad():
        plain = judge.by_chunk(x[:, :4], t, c)
        for k, frame in enumerate((0, 1, 3)):
            other = x[:, :4].clone()
            other[:, frame] += 1.0
            moved = (judge.by_chunk(other, t, c) - plain).abs().amax(0)
            assert float(moved[:k].max() if k else 0.0) == 0.0 and bool((moved[k:] > 1e-6).all())
    with pytest.raises(ValueError, match=r"Far.causal_critic = True: student and critic would share"):
        Far(causal_critic=True)


def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Three iterations at once, and one and then the others: samples, noise of R1 and R2, times, optimisers."""
    x, c = far().example(4)
    whole = Stage(aapt(segments=2), 3, batch=2, optimizer=AdamW(1e-3, (0.0, 0.9)), ema=None)
    recipe = Recipe(far(), (whole,), data=TensorData(x[:, :4], dict(c), dict(far().null(c))))
    once = distill(recipe, device="cpu")
    begun = evolve(recipe, stages=(evolve(whole, steps=1),))
    how: dict[str, Any] = {"out": tmp_path / "run", "device": "cpu", "previews": None}
    distill(begun, **how)
    resumed = distill(recipe, **how)
    for (name, a), b in zip(once.trained().items(), resumed.trained().values(), strict=True):
        assert torch.equal(a, b), name


def test_at_a_recipes_scale() -> None:
    recipe = Recipe(toy(), (Stage(anyflow.forward(), 100), Stage(anyflow.on_policy(guidance=2.0), 30, batch=8)))
    first, then, last = stages(recipe)
    assert [first.steps, then.steps, last.steps, last.batch] == [50, 50, 30, 8]
    assert [s.method.name for s in (first, then, last)] == ["flow_matching", "consistency_training", "aapt"]


# ------------------------------------------------------------------ planted
THERE, HEADS_OF = "flowmap_consistency.relativistic", "flowmap_consistency.heads"
DEFECTS: list[tuple[str, str, str, str, Callable[[], None]]] = [
    (
        "the student's sign",
        THERE,
        "on_real - judge(nets).by_chunk(fake",
        "-on_real + judge(nets).by_chunk(fake",
        test_the_students_loss_and_gradient,
    ),
    (
        "the critic's sign",
        THERE,
        "softplus(on_fake - on_real)",
        "softplus(on_real - on_fake)",
        test_the_critics_loss_and_gradient,
    ),
    (
        "a sum over chunks",
        THERE,
        "softplus(on_fake - on_real).mean(1)",
        "softplus(on_fake - on_real).sum(1)",
        test_the_critics_loss_and_gradient,
    ),
    (
        "R2 of data",
        THERE,
        '("r1", "r2"), (on_real, on_fake), near',
        '("r1", "r2"), (on_real, on_real), near',
        test_r1_and_r2_are_the_exact_penalties_at_a_small_sigma,
    ),
    (
        "a noise twice as large",
        THERE,
        "self.sigma * rng.noise_like(part)",
        "2 * self.sigma * rng.noise_like(part)",
        test_r1_and_r2_are_the_exact_penalties_at_a_small_sigma,
    ),
    (
        "a penalty of no gradient by chunk",
        THERE,
        "(there - beside).square().mean(1)",
        "(there - beside).mean(1).square()",
        test_r1_and_r2_are_the_exact_penalties_at_a_small_sigma,
    ),
    (
        "the memory without a graph",
        HEADS_OF,
        "self.u.extend(cache, part, cond)",
        "self.u.extend(cache, part.detach(), cond)",
        test_the_students_loss_and_gradient,
    ),
    (
        "a graph of the student in the critic's loss",
        THERE,
        "with torch.no_grad():\n            x, first = self.made",
        "with torch.enable_grad():\n            x, first = self.made",
        test_neither_side_leaves_a_gradient_with_the_other,
    ),
    (
        "pieces one after the other",
        THERE,
        "(k - 1) * (frames - first - self.overlap)",
        "(k - 1) * (frames - first)",
        test_a_long_video_is_made_at_once_and_every_piece_counts,
    ),
]


@pytest.mark.parametrize("module, old, new, test", [pytest.param(*rest, id=what) for what, *rest in DEFECTS])
def test_a_mistake_is_seen(module: str, old: str, new: str, test: Callable[[], None]) -> None:
    with planted(module, old, new), pytest.raises((AssertionError, RuntimeError)):
        test()
