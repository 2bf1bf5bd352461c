"""Reward fine-tuning, on Gaussians whose answers are known: N(m, c²), D_t² = (1 - t)² c² + t²."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from flowmap_consistency import reward as methods
from flowmap_consistency import reward_matching
from flowmap_consistency.reward import RewardGradient
from flowmap_consistency.reward_matching import Forms, RewardMatching
from flowmap_consistency.versions import Keeps, Versions
from torch import Tensor, nn

from flowmap import AdamW, Batch, FlowMap, Recipe, Rng, Stage, distill
from flowmap._types import Cache, Cond, Latent, Role, Shared, Time
from flowmap.derivative import ForwardMode
from flowmap.model import Wrapped
from flowmap.objectives import equipped
from flowmap.objectives.distribution_matching import DistributionMatching
from flowmap.path import expand, interpolate
from flowmap.rewards import ModuleReward, Reward, Scores, advantages
from flowmap.rollout import ConsistencySimulation
from flowmap.testing import CountingFlowMap, GaussianFlowMap, counting
from flowmap.times import Diagonal
from flowmap.training.loop import Trainer
from tests.toys import Toy, data


class KilledError(RuntimeError):
    """What a run dies of."""


M, C, SLOPE = 0.5, 0.5, 0.3
ROLES = frozenset[Role]({"student", "teacher", "critic"})
CPU = torch.device("cpu")
PLAIN = Forms(scaled=False, anchor=0.0, clip=1.0, beta=0.5)
PAIRS = [(0.7, 0.7), (0.9, 0.0), (0.6, 0.25), (1.0, 0.4)]


def sigma(t: Tensor) -> Tensor:
    return (((1 - t) * C) ** 2 + t**2).sqrt()


class Tilted(FlowMap):
    """u_old + κ · Δ(z, t, r)."""

    def __init__(self, shift: Callable[[Latent, Time, Time], Latent], κ: float) -> None:
        super().__init__()
        self.u, self.shift = GaussianFlowMap(M, C).requires_grad_(False), shift
        self.κ = nn.Parameter(torch.tensor(κ, dtype=torch.float64))

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return self.u(z, t, r, cond) + self.κ * self.shift(z, t, r)  # type: ignore[no-any-return]


def covariance(z: Latent, t: Time, r: Time) -> Latent:
    """Cov(A, ū | z) of A = a (x - m): -a c² t D_r / D_t³, whatever z is."""
    return expand(-SLOPE * C**2 * t * sigma(r) / sigma(t) ** 3, z) * torch.ones_like(z)


def mean_advantage(z: Latent, t: Time) -> Latent:
    """E[A | z] = a (1 - t) c² / D_t² (z - (1 - t) m)."""
    return expand(SLOPE * (1 - t) * C**2 / sigma(t) ** 2, z) * (z - expand(1 - t, z) * M)


def of_the_map(z: Latent, t: Time, r: Time) -> Latent:
    """β Δ of the flow map of N(m + a c²/β, c²), which one update with the old derivative is not, off the diagonal."""
    gap = (t - r).clamp_min(1e-12)
    α = torch.where(t > r, (1 - sigma(r) / sigma(t)) / gap, (t - (1 - t) * C**2) / sigma(t) ** 2)
    return expand(-SLOPE * C**2 * (1 + (1 - t) * α), z) * torch.ones_like(z)


def pulls(
    form: Forms, shift: Callable[[Latent, Time, Time], Latent], κ: float, t: float, r: float, n: int = 200_000
) -> Any:
    """(the gradient by κ, its standard error) over n samples of one element each, at exact old and reference maps."""
    rng = Rng.seeded(3)
    old, student = GaussianFlowMap(M, C).requires_grad_(False), Tilted(shift, κ)
    x = M + C * rng.noise_like(torch.zeros(n, 1, dtype=torch.float64))
    noise = rng.noise_like(x)
    times = [torch.full((n,), s, dtype=torch.float64) for s in (t, r)]
    z, v = interpolate(x, noise, times[0])
    u_old = old(z, *times, {})
    d = ForwardMode()(old, z, *times, v, {})
    mean = v - expand(times[0] - times[1], v) * d
    own = student(z, *times, {})
    raw = form(own, u_old, u_old, mean, times[0], SLOPE * (x[:, 0] - M))
    (weight,) = torch.autograd.grad(raw.sum(), own)  # a sample's own: its loss depends on its own output alone
    each = weight[:, 0] * shift(z, *times)[:, 0]
    return float(each.mean()), float(each.std() / n**0.5)


@pytest.mark.parametrize("t, r", PAIRS)
def test_the_minimiser_of_nft_is_the_covariance_over_beta(t: float, r: float) -> None:
    """At Δ* the gradient is zero within four standard errors, and at half of it far from zero."""

    def best(z: Latent, t: Time, r: Time) -> Latent:
        return covariance(z, t, r) / PLAIN.beta

    pull, error = pulls(PLAIN, best, 1.0, t, r)
    assert abs(pull) < 4 * error
    half, error = pulls(PLAIN, best, 0.5, t, r)
    assert half < -20 * error


@pytest.mark.parametrize("t, r", PAIRS)
def test_the_minimiser_of_mfa_is_that_over_gamma_and_the_mean_advantage(t: float, r: float) -> None:
    form = Forms("mfa", gamma=1.5, anchor=0.0, clip=1.0, scaled=False)

    def best(z: Latent, t: Time, r: Time) -> Latent:
        return covariance(z, t, r) / (form.gamma + mean_advantage(z, t))

    pull, error = pulls(form, best, 1.0, t, r)
    assert abs(pull) < 4 * error
    half, error = pulls(form, best, 0.5, t, r)
    assert half < -20 * error


def test_one_update_is_the_shifted_law_s_on_the_diagonal_alone() -> None:
    """There it is the velocity of N(m + a c²/β, c²); off it a test that wants that map forgets whose D_v it is."""

    def shifted(z: Latent, t: Time, r: Time) -> Latent:
        return of_the_map(z, t, r) / PLAIN.beta

    pull, error = pulls(PLAIN, shifted, 1.0, 0.7, 0.7)
    assert abs(pull) < 4 * error
    pull, error = pulls(PLAIN, shifted, 1.0, 0.9, 0.0)
    assert abs(pull) > 20 * error


def wrong_branch(self: Forms, u: Latent, old: Latent, ref: Latent, mean: Latent, t: Time, A: Tensor) -> Tensor:
    """Planted: the negative policy goes the positive one's way."""
    e, Δ = old - mean, u - old
    up = self._branch(e + self.beta * Δ, t)
    return ((0.5 + A / 2) * up + (0.5 - A / 2) * up) * self.clip / self.beta


def test_a_sign_of_beta_that_is_flipped_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forms, "__call__", wrong_branch)
    pull, error = pulls(PLAIN, lambda z, t, r: covariance(z, t, r) / PLAIN.beta, 1.0, 0.6, 0.25)
    assert abs(pull) > 20 * error


@pytest.mark.parametrize("form", [Forms(), Forms("mfa", clip=1.0, anchor=1e-3), PLAIN], ids=["nft", "mfa", "plain"])
def test_without_an_advantage_there_is_no_gradient_at_the_old_policy(form: Forms) -> None:
    """Exactly; and of a constant one the gradient of a calibrated policy has mean zero, four standard errors."""
    u = torch.randn(64, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, t = u + torch.randn(u.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.rand(64)
    own = u.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(form(own, u, u, mean, t, torch.zeros(64)).sum(), own)
    assert not gradient.any()
    assert torch.autograd.grad(form(own, u, u, mean, t, torch.ones(64)).sum(), own)[0].abs().max() > 0


def test_of_nothing_but_good_samples_it_is_flow_matching() -> None:
    """ρ = 1, β = 1, r = t: |u_θ - v|²."""
    form = Forms(beta=1.0, clip=1.0, anchor=0.0, scaled=False)
    g = torch.Generator().manual_seed(0)
    own, old, v = (torch.randn(8, 5, generator=g, dtype=torch.float64) for _ in range(3))
    found = form(own, old, old, v, torch.full((8,), 0.4), torch.ones(8))
    torch.testing.assert_close(found, (own - v).square().mean(1))


@frozen
class Level:
    """The mean of what it is given."""

    name: str = "mean"
    differentiable: bool = True
    scale: float = 1.0

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.scale * videos.flatten(1).mean(1)


@frozen
class Blind:
    name: str = "blind"
    differentiable: bool = False

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return videos.new_zeros(len(videos))


SCORES = Scores(None, ((1.0, Level()),))


def matching(**settings: Any) -> RewardMatching:
    return RewardMatching(SCORES, **{"number": 4, "pairs": 2, "steps": (4,), "shift": 1.0, **settings})


def built(method: Any, spec: Toy | None = None) -> tuple[Trainer, dict[Role, CountingFlowMap]]:
    counted = counting((spec or Toy()).build(ROLES, device=CPU, dtype=torch.float32))
    nets = equipped(counted, method.equips, data(1).batch([0]))
    for u in counted.values():
        u.reset()
    return Trainer(nets, Stage(method, 100, batch=8, ema=None, optimizer=AdamW(1e-3)), data(32)), counted


def settings(**more: Any) -> dict[str, Any]:
    return {"number": 4, "pairs": 4, "shift": 1.0, **more}


@pytest.mark.parametrize("make", [methods.nft, methods.mfa])
def test_an_iteration_costs_16_F_and_4_G_a_sample(make: Any) -> None:
    """N = 4 steps, 4 pairs of 1 G, 1 F of old, 1 F of the reference, 2 F of old off the diagonal: no null branch."""
    loop, nets = built(make(SCORES, **settings()))
    loop.step(0)
    samples = 4 * 8
    assert (nets["student"].graph, nets["student"].plain) == (4 * samples, 16 * samples)
    assert nets["teacher"].plain == nets["critic"].plain == 0


@pytest.mark.parametrize("shared", [False, True])
def test_versions_are_the_network_when_they_were_made_and_follow_it(shared: bool) -> None:
    """Adapters on a base, or whole weights; the base is there once."""
    spec = Toy(shared=shared)
    u = spec.build(ROLES, device=CPU, dtype=torch.float32)["student"]
    v = Keeps()(u, data(1).batch([0]))
    z, cond = spec.example()
    t, r = torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.5])
    before = v(z, t, r, cond).detach()
    with torch.no_grad():
        for p in u.trained().values():
            p.add_(0.1)
    after = v(z, t, r, cond)
    with v.using("old"):
        torch.testing.assert_close(v(z, t, r, cond), before, rtol=0, atol=0)
    torch.testing.assert_close(v(z, t, r, cond), after, rtol=0, atol=0)
    after.square().sum().backward()  # a graph that was made before a version was used is whole
    assert all(p.grad is not None for p in u.trained().values() if p.requires_grad)
    v.follow("old", 0.5)
    own, kept = u.trained(), v.trained()
    name = next(iter(own))
    torch.testing.assert_close(kept[f"old.{name}"], own[name] - 0.05)
    assert len(kept) == 3 * len(own)
    v.follow("old", 0.0)
    assert torch.equal(kept[f"old.{name}"], own[name])


def test_the_derivative_is_the_old_policy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: of θ. At θ = old that changes nothing, and once it has moved the value."""

    def values(moved: float) -> Tensor:
        u = Keeps()(Toy().build(ROLES, device=CPU, dtype=torch.float32)["student"], data(1).batch([0]))
        with torch.no_grad():
            for p in u.u.trained().values():
                p.add_(moved * torch.sin(torch.arange(p.numel(), dtype=p.dtype)).reshape(p.shape))
        found: Tensor = matching(lag=(0.0, 0.0))._pair(
            u, data(4).batch(range(4)).x, dict(data(4).batch(range(4)).cond), torch.ones(4), [Rng.seeded(1)]
        )[0]
        return found.detach()

    right, own = (values(0.0), values(0.3)), RewardMatching._derivative

    def of_theta(self: RewardMatching, u: Versions, *given: Any) -> Latent:
        """Within `using("old")`, what the network held is put back."""
        now = [p.data for p in u.u.trained().values()]
        for p, moved in zip(u.u.trained().values(), THETA, strict=True):
            p.data = moved
        found = own(self, u, *given)
        for p, held in zip(u.u.trained().values(), now, strict=True):
            p.data = held
        return found

    using = Versions.using

    def remembered(self: Versions, name: str) -> Any:
        if name == "old":
            THETA[:] = [p.data for p in self.u.trained().values()]
        return using(self, name)

    THETA: list[Tensor] = []
    monkeypatch.setattr(Versions, "using", remembered)
    monkeypatch.setattr(RewardMatching, "_derivative", of_theta)
    torch.testing.assert_close(values(0.0), right[0])
    assert (values(0.3) - right[1]).abs().max() > 1e-4


def trained(out: Any, iterations: int, stop: int | None = None) -> dict[str, Tensor]:
    method = methods.nft(SCORES, number=3, pairs=1, shift=1.0, steps=(2, 4))
    stage = Stage(method, iterations, batch=4, micro=2, optimizer=AdamW(1e-2), ema=None)
    u = distill(Recipe(Toy(), (stage,), data=data(16)), out=out, device="cpu", save_minutes=0.0)
    return {name: p.detach().clone() for name, p in u.trained().items()}


def test_a_stage_that_is_resumed_goes_on_exactly(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the sampling phase of iteration 4: the old policy and the reference are in the checkpoint."""
    whole = trained(tmp_path / "whole", 6)
    made, calls = RewardMatching._made, [0]

    def dies(self: RewardMatching, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 8:
            raise KilledError
        return made(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(RewardMatching, "_made", dies)
        with pytest.raises(KilledError):
            trained(tmp_path / "run", 6)
    again = trained(tmp_path / "run", 6)
    assert calls[0] == 8
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name


def test_the_reward_rises_and_the_reference_stays() -> None:
    method = methods.nft(SCORES, number=8, pairs=1, shift=1.0)
    loop, _ = built(method)
    loop.optimizers["student"].param_groups[0]["lr"] = 3e-3
    means = [loop.read(loop.step(i), i)["student/reward/mean"] for i in range(40)]
    assert sum(means[-5:]) / 5 > sum(means[:5]) / 5 + 0.1


def test_advantages_are_normalised_a_reward_and_a_prompt() -> None:
    """Whatever a reward's scale; the mean of each prompt is 0; what two rewards disagree on is silent where asked."""
    g = torch.Generator().manual_seed(0)
    one = torch.randn(1, 6, 3, generator=g)
    A = advantages(one, (1.0,), Shared())
    torch.testing.assert_close(advantages(1000 * one + 5, (1.0,), Shared()), A, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(A.mean(0), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(A, ((one - one.mean(1, keepdim=True)) / (one.std(correction=0) + 1e-4))[0])
    against = torch.cat([one, -3 * one])
    torch.testing.assert_close(advantages(against, (1.0, 1.0), Shared()), torch.zeros(6, 3), rtol=0, atol=1e-3)
    mixed = torch.cat([one, torch.randn(1, 6, 3, generator=g)])
    silent = advantages(mixed, (1.0, 1.0), Shared(), agree=True) == 0
    off = mixed - mixed.mean(1, keepdim=True)
    assert torch.equal(silent, off[0].sign() != off[1].sign())
    own = advantages(one, (1.0,), Shared(), "prompt")
    torch.testing.assert_close(own.std(0, correction=0), torch.ones(3), rtol=1e-3, atol=1e-3)


def test_the_fixed_point_of_matching_with_a_reward_is_a_shift_of_the_mean() -> None:
    """δ = λ a / E[t² / D_t²] at unchanged c: at it neither mean nor width has a gradient; at half of it the mean."""
    a, weight, floor = 0.7, 0.4, 1e3
    times = Diagonal(shift=5.0, low=0.02, high=0.98)
    s = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    t = (5 * s / (1 + 4 * s)).clamp(0.02, 0.98)
    share = float((t**2 / sigma(t) ** 2).mean())
    assert share == pytest.approx(0.883, abs=2e-3)
    rollout = ConsistencySimulation((1.0,))  # type: ignore[arg-type]

    def gradients(shift: float) -> tuple[Tensor, Tensor]:
        made = []
        for seed in range(24):
            student = GaussianFlowMap(M + shift, C)
            nets: Any = {
                "student": student,
                "teacher": GaussianFlowMap(M, C).requires_grad_(False),
                "critic": GaussianFlowMap(M + shift, C).requires_grad_(False),
            }
            batch = Batch(torch.zeros(2000, 1, dtype=torch.float64), {}, {})
            scores = Scores(None, ((weight, Level(scale=a)),))
            # constant normaliser: x - sg(x - g), squared, has the gradient 2 g / floor
            dmd = (
                floor
                / 2
                * DistributionMatching(rollout, times, 1.0, floor)(nets, batch, Rng.seeded(seed), Shared()).value
            )
            r = RewardGradient(scores, rollout)(nets, batch, Rng.seeded(seed), Shared()).value
            made.append(torch.stack(torch.autograd.grad(dmd + r, (student.mean, student.std))))
        found = torch.stack(made)
        return found.mean(0), found.std(0) / len(found) ** 0.5

    shift = weight * a / share
    mean, error = gradients(shift)
    assert (mean.abs() < 4 * error + 1e-6).all(), (mean, error)
    mean, error = gradients(shift / 2)
    assert mean[0] < -20 * error[0]  # pulled on towards the reward
    mean, error = gradients(-shift)  # planted: the reward's sign
    assert abs(mean[0]) > 20 * error[0]


def test_rewards_are_a_term_of_stage_2_on_the_same_samples() -> None:
    """2 or 3 G of a rollout, no more than without; both gradients are told."""
    method = methods.on_policy(SCORES, reward=0.1, cotrain=0.0, shift=1.0)
    loop, nets = built(method)
    logs = loop.read(loop.step(0), 0)
    assert nets["student"].graph in (2 * 8, 3 * 8) and nets["student"].plain == 0
    assert logs["student/reward/gradient"] > 0 and logs["student/dmd/gradient"] > 0
    assert "student/reward/mean" in logs


def broken(videos: Tensor) -> Tensor:
    return videos


class Brightness(nn.Module):
    """A third party's score: any module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.weight * videos.flatten(1).mean(1)


def test_any_module_is_a_reward() -> None:
    reward = ModuleReward("brightness", Brightness)
    assert isinstance(reward, Reward)
    x = torch.rand(3, 2, 3, 4, 4, requires_grad=True)
    found = Scores(None, ((1.0, reward),))(x, {})
    torch.testing.assert_close(found[0], x.flatten(1).mean(1))
    found.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in reward._made[x.device].parameters())


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: Scores(None, ((1.0, broken),)), r"Scores.rewards\[0\] = .*: must be a pair"),  # type: ignore[arg-type]
    (lambda: RewardGradient(Scores(None, ((1.0, Blind()),))), "blind has no gradient: take `reward.nft`"),
    (lambda: Scores(None, ((1.0, ModuleReward("whole", nn.Identity)),))(torch.zeros(2, 3), {}), "gave|takes|expected"),
    (lambda: matching()({"student": GaussianFlowMap()}, None, Rng.seeded(0), Shared()), "without versions"),  # type: ignore[arg-type, dict-item]
    (lambda: matching(number=1), "number = 1: must be >= 2"),
]


@pytest.mark.parametrize("make, told", MISTAKES, ids=[told for _, told in MISTAKES])
def test_mistakes_are_named(make: Callable[[], Any], told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        make()


def test_settings_are_the_published_ones() -> None:
    found = methods.nft(SCORES).updates[0].terms[0][1]
    assert isinstance(found, RewardMatching)
    assert (found.number, found.pairs, found.steps, found.lag) == (24, 4, (4,), (0.001, 0.5))
    assert (found.form.beta, found.form.clip, found.form.anchor) == (0.1, 5.0, 1e-4)
    signed = methods.mfa(SCORES).updates[0].terms[0][1]
    assert isinstance(signed, RewardMatching)
    assert (signed.form.gamma, signed.form.clip, signed.form.anchor) == (1.1, 1.0, 1e-3)
    assert isinstance(Versions, type) and issubclass(Versions, Wrapped)
    assert evolve(found, agree=True).agree and reward_matching.FIRST == 0.02
