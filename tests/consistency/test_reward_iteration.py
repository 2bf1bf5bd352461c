"""An iteration of reward fine-tuning, part by part: the published loss, what each version is asked, who is sampled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from flowmap_consistency.reward import RewardGradient
from flowmap_consistency.reward_matching import FIRST, Forms, RewardMatching
from flowmap_consistency.versions import Keeps, Versions
from torch import Tensor

from flowmap import Rng
from flowmap._types import Latent, Role, Shared, Time
from flowmap.derivative import ForwardMode
from flowmap.objectives.distribution_matching import DistributionMatching
from flowmap.path import expand
from flowmap.rewards import Scores
from flowmap.testing import GaussianFlowMap
from tests.consistency.test_reward import SCORES, Level, matching
from tests.toys import Toy, data

B, D = 6, 7
MEANS = {"own": 0.9, "old": 0.5, "reference": 0.2}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return Rng.seeded(seed).noise_like(torch.zeros(*shape, dtype=torch.float64))


@frozen
class Fixed:
    """Times as given, of which the first is on the diagonal and too small."""

    t: tuple[float, ...] = (0.01, 0.01, 0.5, 0.5, 0.9, 1.0)
    r: tuple[float, ...] = (0.01, 0.0, 0.5, 0.2, 0.0, 0.4)

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Time, Time]:
        t, r = (torch.tensor(a, dtype=torch.float64) for a in (self.t, self.r))
        return t, r


def published(form: Forms, t: Time, r: Time, A: Tensor, own: dict[str, Latent], x: Latent, v: Latent, d: Latent) -> Any:
    """In data space, by instantaneous velocities V_k = u_k + (t - r) d, as the two papers have it."""
    V = {name: u + expand(t - r, u) * d for name, u in own.items()}
    z = x + expand(t, x) * v

    def seen(velocity: Latent) -> tuple[Tensor, Tensor]:
        """(mean square, mean absolute) error of x̂ = z - t V."""
        off = z - expand(t, z) * velocity - x
        return off.square().mean(1), off.detach().abs().mean(1).clamp_min(1e-5)

    if form.form == "mfa":
        _, s = seen(V["own"])
        terms = ((A, own["own"] - (v - expand(t - r, v) * d)), (form.gamma, own["own"] - own["old"]))
        terms += ((form.anchor, own["own"] - own["reference"]),)
        return t**2 * sum(weight * off.square().mean(1) for weight, off in terms) / s
    ρ, β = 0.5 + A / (2 * form.clip), form.beta
    up, down = (seen((1 - k * β) * V["old"] + k * β * V["own"]) for k in (1, -1))
    pulled = (ρ * up[0] / up[1] + (1 - ρ) * down[0] / down[1]) * form.clip / β
    return pulled + form.anchor * (V["own"] - V["reference"]).square().mean(1)


def versions() -> Versions:
    """Gaussian maps of different means: of what is trained, of the old policy, of the reference."""
    u = Keeps()(GaussianFlowMap(MEANS["own"], 0.6), data(1).batch([0]))
    kept = u.trained()
    with torch.no_grad():
        for name in ("old", "reference"):
            kept[f"{name}.mean"].fill_(MEANS[name])
    return u


@pytest.mark.parametrize("form", [Forms(), Forms("mfa", clip=1.0, anchor=1e-3)], ids=["nft", "mfa"])
def test_a_pair_is_the_published_loss_of_the_old_map_s_derivative(form: Forms) -> None:
    """In float64, of three networks that differ, at every role of (t, r); what is on the diagonal stays there."""
    u, x, A = versions(), drawn(B, D), drawn(B, seed=1).clamp(-form.clip, form.clip)
    made = RewardMatching(SCORES, evolve(form), 2, 1, times=Fixed(), derivative=ForwardMode())
    found, norm = made._pair(u, x, {}, A, [Rng.seeded(4)])
    v = Rng.seeded(4).noise_like(x) - x
    t, r = Fixed()(B, Rng.seeded(0), x)
    r = torch.where(r == t, t.clamp_min(FIRST), r)
    t = t.clamp_min(FIRST)
    z = x + expand(t, x) * v
    nets = {name: GaussianFlowMap(mean, 0.6) for name, mean in MEANS.items()}
    own = {name: net(z, t, r, {}) for name, net in nets.items()}
    d = ForwardMode()(nets["old"], z, t, torch.minimum(r, t), v, {})
    wanted = published(form, t, r, A, own, x, v, d)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    pulls = (torch.autograd.grad(a.sum(), p)[0] for a, p in ((found, u.u.mean), (wanted, nets["own"].mean)))  # type: ignore[arg-type]
    torch.testing.assert_close(*pulls, rtol=1e-9, atol=1e-9)  # a branch's scale has no gradient
    ratio = own["own"].norm(dim=1) / own["reference"].norm(dim=1)
    torch.testing.assert_close(norm, ratio.detach(), rtol=1e-9, atol=1e-9)


def test_the_hinge_is_of_a_norm_that_grows() -> None:
    """max(0, |u_θ| / |u_ref| - 1 - m)², of that sample."""
    ref = drawn(3, D)
    u = ref * torch.tensor([[0.5], [1.05], [1.5]])
    plain, hinged = (
        Forms(hinge=(0.1, weight))(u, ref, ref, ref, torch.ones(3), torch.zeros(3)) for weight in (0.0, 2.0)
    )
    torch.testing.assert_close(hinged - plain, 2.0 * torch.tensor([0.0, 0.0, 0.4**2], dtype=torch.float64))


def moved(u: Versions, by: float) -> None:
    with torch.no_grad():
        for p in u.u.trained().values():
            p.add_(by * torch.sin(torch.arange(p.numel(), dtype=p.dtype)).reshape(p.shape))


def test_the_old_policy_makes_the_samples_and_each_by_its_own_condition() -> None:
    net = Toy().build(frozenset[Role]({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    u, batch = Keeps()(net, data(1).batch([0])), data(3).batch(range(3))
    made = matching(number=2)
    x, cond = made._made(u, batch, Rng.seeded(5))
    own = Toy().build(frozenset[Role]({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    own.load_state_dict(net.state_dict())
    moved(u, 0.3)
    torch.testing.assert_close(made._made(u, batch, Rng.seeded(5))[0], x, rtol=0, atol=0)
    for k in range(2):
        for name, value in batch.cond.items():
            assert torch.equal(cond[name][3 * k : 3 * k + 3], value)
    z = drawn(6, *batch.x.shape[1:], seed=2).float()
    t = torch.ones(6)
    torch.testing.assert_close(own(z, t, 0 * t, cond)[3:], own(z[3:], t[3:], 0 * t[3:], batch.cond))
    assert not torch.equal(x[:3], x[3:])  # noise of its own


def test_the_old_policy_follows_once_an_iteration_and_the_reference_never() -> None:
    """old <- η old + (1 - η) θ, η = min(0.001 · iteration, ½): near θ at first, later half of the way behind."""
    u, made = versions(), matching(lag=(0.001, 0.5))
    kept = u.trained()
    old, ref = (
        next(p for key, p in kept.items() if key.startswith(f"{n}.") and "mean" in key) for n in list(MEANS)[1:]
    )
    for iteration, (wanted, reference) in {
        100: (0.1 * 0.5 + 0.9 * 0.9, 0.2),
        2000: (0.5 * 0.86 + 0.5 * 0.9, 0.2),
        0: (0.9, 0.9),
    }.items():
        for _ in range(2):  # of two micro-batches, the first
            made._follow(u, iteration, Rng.seeded(1, 2, iteration))
        assert float(old) == pytest.approx(wanted) and float(ref) == pytest.approx(reference)


def test_pairs_of_a_sample_are_different_draws() -> None:
    """Else more of them would be worth one."""
    seen: list[Tensor] = []

    class Watched(GaussianFlowMap):
        def forward(self, z: Latent, *given: Any) -> Latent:
            if torch.is_grad_enabled():
                seen.append(z.detach())
            return super().forward(z, *given)

    u = Keeps()(Watched(), data(1).batch([0]))
    made = matching(number=2, pairs=3)
    batch = evolve(data(2).batch([0, 1]), cond={}, null={})
    made({"student": u}, batch, Rng.seeded(1, 2, 3), Shared())
    flat = torch.stack([z.flatten() for z in seen])
    assert (
        len(flat) == 3
        and float((flat[:, None] - flat[None]).abs().amax(2)[~torch.eye(3, dtype=torch.bool)].min()) > 0.1
    )


def test_gradients_are_told_in_one_unit() -> None:
    """The logs "reward/gradient" and "dmd/gradient" stand to each other as the gradients by x of the two losses do."""
    seen: list[Tensor] = []

    class Kept:
        def __call__(self, u: Any, noise: Latent, cond: Any, rng: Rng) -> Latent:
            seen.append(noise.detach().clone().requires_grad_())
            return seen[-1]

    nets: Any = {role: GaussianFlowMap(m, 0.5) for role, m in (("student", 1.0), ("critic", 1.0), ("teacher", 0.0))}
    batch = evolve(data(3).batch(range(3)), cond={}, null={})
    told, real = [], []
    for term in (
        DistributionMatching(Kept(), w=1.0),  # type: ignore[arg-type]
        RewardGradient(Scores(None, ((0.7, Level(scale=3.0)),)), Kept()),  # type: ignore[arg-type]
    ):
        loss = term(nets, batch, Rng.seeded(1), Shared())
        (g,) = torch.autograd.grad(loss.value, seen[-1])
        real.append(float(g.abs().mean()))
        name = "dmd/gradient" if not told else "reward/gradient"
        told.append(float(loss.logs[name].value))
    assert told[1] / told[0] == pytest.approx(real[1] / real[0], rel=1e-5)
