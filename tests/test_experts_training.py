"""One of two experts is trained: it, its teacher and its critic are asked on its own side alone, and rightly."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve
from torch import Tensor

from flowmap import Batch, FlowMap, Rng
from flowmap._types import Cache, Cond, Latent, Shared, Time
from flowmap.derivative import CentralDifference
from flowmap.experts import TwoExperts
from flowmap.method import Method
from flowmap.methods import anyflow
from flowmap.objectives import distribution_matching as module
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching, matching
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.path import data_from_velocity, interpolate, renoise, state_from_velocity
from flowmap.reweights import Beta
from flowmap.rollout import ConsistencySimulation, FlowMapBackwardSimulation
from flowmap.testing import CountingFlowMap, GaussianFlowMap
from flowmap.times import Diagonal, LogitNormal, Span, TimeSampler, Triangle, Uniform, roles
from tests.test_experts import EXACT, Above, B, Below, pair
from tests.toys import Toy

HIGH, LOW = (B, 1.0), (0.0, B)
SIDES = pytest.mark.parametrize("within", [HIGH, LOW])
N = 200_000
LIKE = torch.zeros(1)


# ---------------------------------------------------------------------- times
def kept(sampler: TimeSampler, within: Span) -> Tensor:
    """t and r of the draws of a sampler of all times that happen to be on one side."""
    t, r = sampler(6 * N, Rng.seeded(1), LIKE)
    return torch.stack([t, r])[:, (r >= within[0]) & (t <= within[1])]


@SIDES
@pytest.mark.parametrize(
    "sampler",
    [Diagonal(shift=5.0), Diagonal(LogitNormal(), 5.0), Triangle(0.0, 0.0, 5.0), Triangle(0.0, 0.0, 12.0)],
)
def test_they_are_drawn_as_all_times_are_given_their_side(sampler: Diagonal | Triangle, within: Span) -> None:
    there = kept(sampler, within)
    t, r = evolve(sampler, within=within)(N, Rng.seeded(0), LIKE)
    assert (r >= within[0]).all() and (t <= within[1]).all() and t.dtype == torch.float32
    for ours, theirs in zip((t, r), there, strict=True):
        q = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
        below = (ours[:, None] < theirs.quantile(q)).float().mean(0)
        error = (q * (1 - q) * (1 / N + 1 / there.shape[1])).sqrt()
        assert ((below - q).abs() <= 4 * error).all(), (below, q)


@SIDES
@pytest.mark.parametrize("density", [Uniform(), LogitNormal()])
def test_every_shift_has_times_on_its_side(density: Uniform | LogitNormal, within: Span) -> None:
    """In float32 the inverse of the shift takes 1 beyond 1 for one shift in twenty, 1.04 among them."""
    for shift in (k / 100 for k in range(100, 2000, 4)):
        t, _ = Diagonal(density, shift, within=within)(16, Rng.seeded(0), LIKE)
        assert t.isfinite().all() and (t >= within[0]).all() and (t <= within[1]).all(), shift


def test_below_the_boundary_no_diagonal_is_on_it() -> None:
    """There the high one would be asked."""
    for sampler in (Diagonal(within=LOW), Triangle(1.0, 0.0, 5.0, within=LOW)):
        t, _ = sampler(N, Rng.seeded(0), LIKE)
        assert (t < B).all()


@SIDES
def test_the_edge_is_the_end_of_the_side(within: Span) -> None:
    t, r = Triangle(0.5, 0.25, 5.0, within=within)(64, Rng.seeded(0), LIKE)
    assert {role: int(m.sum()) for role, m in roles(t, r, within[0]).items()} == {
        "diagonal": 32,
        "edge": 16,
        "free": 16,
    }


@SIDES
def test_the_weight_is_of_mean_one_on_its_side(within: Span) -> None:
    t, r = Diagonal(shift=5.0, within=within)(N, Rng.seeded(0), LIKE)
    weight = Beta(shift=5.0, within=within)(t, t, t, r, Shared())
    assert abs(float(weight.mean()) - 1) < 5e-3
    assert abs(float(Beta(shift=5.0)(t, t, t, r, Shared()).mean()) - 1) > 0.05, "over all times it is another"


@pytest.mark.parametrize("within", [(0.2, 0.8), (0.5, 0.5), (0.0, 1.1), 0.5])
def test_a_span_is_one_side(within: Span) -> None:
    with pytest.raises(ValueError, match=r"within = .*: must be \(0, 1\), or \(b, 1\) or \(0, b\)"):
        Triangle(within=within)


# ---------------------------------------------------------------------- whom is asked what
class Asked(FlowMap):
    """The exact map, which remembers the times that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.u = GaussianFlowMap(0.5, 0.3)
        self.times: list[Tensor] = []

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.times.append(torch.stack([t, r]))
        return self.u(z, t, r, cond)


def batch(n: int = 64) -> Batch:
    x = 0.5 + 0.3 * Rng.seeded(7).noise_like(torch.zeros(n, 4))
    return Batch(x, {}, {})


def methods(within: Span) -> list[Method]:
    own = {"guidance": 1.0, "drop": 0.0, "within": within}
    return [
        anyflow.teacher(drop=0.0, within=within),
        anyflow.forward(**own),
        anyflow.forward(**own, velocity="teacher"),
        anyflow.on_policy(**own, teacher_guidance=1.0),
        anyflow.on_policy(**own, teacher_guidance=1.0, share_rollout=False),
    ]


def run(method: Method, nets: dict[str, FlowMap], seed: int) -> None:
    shared = Shared()
    for update in method.updates:
        for _, objective in update.terms:
            objective(nets, batch(), Rng.seeded(seed), shared)


@SIDES
@pytest.mark.parametrize("k", range(5))
def test_every_network_is_asked_on_its_side_alone(within: Span, k: int) -> None:
    trained, begins = Asked(), Asked()
    nets: dict[str, FlowMap] = {"teacher": Asked(), "critic": Asked(), "student": trained}
    if within == LOW:
        nets["student"] = TwoExperts(begins, trained, B)
    for seed in range(8):
        run(methods(within)[k], nets, seed)
    for u in (nets["teacher"], nets["critic"], trained):
        for t, r in u.times:
            assert (r >= within[0]).all() and (t <= within[1]).all() and (r <= t).all()
    assert all((r >= B).all() for _, r in begins.times), "the high student makes what the low one begins with"
    assert bool(begins.times) == (within == LOW and k > 2)


def test_a_difference_without_its_end_asks_the_low_one_for_more() -> None:
    nets: dict[str, FlowMap] = {"student": Asked()}
    objective = FlowMapMatching(Triangle(0.0, 0.0, 5.0, within=LOW), CentralDifference())
    objective(nets, batch(), Rng.seeded(0), Shared())
    assert max(float(t.max()) for t, _ in nets["student"].times) > B


# ---------------------------------------------------------------------- stage 1
@SIDES
def test_the_identity_holds_on_either_side(within: Span) -> None:
    """Of an expert that says nonsense elsewhere: along the flow's own velocity nothing is left but O(h²)."""
    u = {HIGH: Above(), LOW: Below()}[within]
    nets: dict[str, FlowMap] = {"student": u, "teacher": u}
    told = anyflow.forward(guidance=1.0, drop=0.0, velocity="teacher", h=5e-3, within=within)
    (_, objective), *_ = told.updates[0].terms
    loss = objective(nets, batch(512), Rng.seeded(0), Shared())
    assert all(float(m.value) < 2e-3 for name, m in loss.logs.items() if name.startswith("loss/"))
    wide = evolve(objective, derivative=CentralDifference(5e-3), times=Triangle(0.0, 1.0, 5.0, within=within))
    crossing = wide(nets, batch(512), Rng.seeded(0), Shared()).logs["loss/edge"].value
    assert (float(crossing) > 1.0) == (within == LOW)


# ---------------------------------------------------------------------- the rollout
def noise(n: int = 8) -> Tensor:
    return Rng.seeded(3).noise_like(torch.zeros(n, 4))


@pytest.mark.parametrize("seed", range(12))
def test_the_high_walk_ends_at_the_boundary_and_the_low_one_in_the_data(seed: int) -> None:
    one, b, zero = (torch.full((8,), s) for s in (1.0, B, 0.0))
    high = FlowMapBackwardSimulation(within=HIGH)(Above(), noise(), {}, Rng.seeded(seed))
    assert torch.allclose(high, EXACT.jump(noise(), one, b, {}), atol=1e-5)
    low = FlowMapBackwardSimulation(within=LOW)(pair(), noise(), {}, Rng.seeded(seed))
    assert torch.allclose(low, EXACT.jump(noise(), one, zero, {}), atol=1e-5)


def test_the_high_student_makes_the_states_and_gets_no_gradient() -> None:
    for seed in range(12):
        high, low = CountingFlowMap(GaussianFlowMap(0.5, 0.3)), CountingFlowMap(GaussianFlowMap(0.5, 0.3))
        x = FlowMapBackwardSimulation(within=LOW)(TwoExperts(high, low, B), noise(1), {}, Rng.seeded(seed))
        x.sum().backward()
        assert (high.graph, low.plain) == (0, 0) and 1 <= high.plain <= 3 and 1 <= low.graph <= 3
        assert all(p.grad is None for p in high.parameters()) and low.u.mean.grad.abs() > 0
    moved = TwoExperts(GaussianFlowMap(3.0, 0.3), GaussianFlowMap(0.5, 0.3), B)
    off = FlowMapBackwardSimulation(within=LOW)(moved, noise(), {}, Rng.seeded(0)) - x.detach()[0]
    assert off.abs().max() > 0.1, "the states are those of the high student that there is"


def test_what_cannot_be_rolled_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the student is one network: must be the pair of a high expert"):
        FlowMapBackwardSimulation(within=LOW)(Below(), noise(), {}, Rng.seeded(0))
    with pytest.raises(ValueError, match=r"has its boundary at 0.875: must be the pair .* at t = 0\.9"):
        FlowMapBackwardSimulation(within=(0.0, 0.9))(pair(), noise(), {}, Rng.seeded(0))
    with pytest.raises(ValueError, match=r"steps = \(1, 2\): must each be at least 2, one for each"):
        FlowMapBackwardSimulation((1, 2), within=LOW)
    spec = Toy(causal=True)
    z, cond = spec.example(2)
    u = spec.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    with pytest.raises(ValueError, match=r"makes chunks of \(2, 2\) frames, whose history"):
        FlowMapBackwardSimulation(within=HIGH)(u, z, cond, Rng.seeded(0))
    with pytest.raises(ValueError, match=r"DistributionMatching.end = 0.0: must be 0.875, where its rollout ends"):
        DistributionMatching(FlowMapBackwardSimulation(within=HIGH))
    for rollout in (ConsistencySimulation(), lambda u, noise, cond, rng: noise):
        for objective in (DistributionMatching, CriticMatching):
            with pytest.raises(ValueError, match=r"\.end = 0.875: must be 0.0, where its rollout ends, a "):
                objective(rollout, end=B)
    with pytest.raises(ValueError, match=r"with parity = True: must be one or the other, the reference"):
        anyflow.forward(parity=True, within=LOW)


# ---------------------------------------------------------------------- matching distributions at the boundary
OTHER = GaussianFlowMap(-0.2, 0.7)


@pytest.mark.parametrize("s, t", [(0.0, 0.4), (0.5, 0.6), (B, 0.9), (B, 1.0), (B, B)])
def test_the_state_that_is_expected_is_that_of_the_joint_gaussian(s: float, t: float) -> None:
    z, at = noise(5).double(), torch.full((5,), t).double()
    below = torch.full((5,), s).double()
    a = ((1 - at) / (1 - below))[:, None]
    m, var_s, var_t = (1 - s) * 0.5, EXACT.sigma(below)[:, None] ** 2, EXACT.sigma(at)[:, None] ** 2
    exact = m + a * var_s / var_t * (z - a * m)
    found = state_from_velocity(z, EXACT(z, at, at, {}), at, s)
    assert torch.allclose(found, exact, atol=1e-10)


def matched(end: float, seeds: int = 40) -> tuple[Tensor, Tensor]:
    """Of a student whose samples are at `end`: ∂loss/∂mean of it by seed, and what it must be on average."""
    n, rollout = 4096, FlowMapBackwardSimulation(within=(end, 1.0))
    objective = DistributionMatching(rollout, Diagonal(shift=5.0, within=(end, 1.0)), w=1.0, floor=1e6, end=end)
    found, expected = [], []
    for seed in range(seeds):
        student = GaussianFlowMap(-0.2, 0.7)
        nets: dict[str, FlowMap] = {"student": student, "teacher": EXACT, "critic": OTHER}
        one = Batch(torch.zeros(n, 1, dtype=torch.float64), {}, {})
        loss = objective(nets, one, Rng.seeded(seed), Shared())
        found.append(torch.autograd.grad(loss.value, student.mean)[0])
        t, _ = objective.times(20_000, Rng.seeded(seed, 1), LIKE)
        a, t = (1 - t) / (1 - end), t.double()
        b2 = t**2 - (a * end) ** 2
        pull = b2 / a * (1 - t) * (-0.2 - 0.5) / EXACT.sigma(t) ** 2  # (b² / a) E[s_critic - s_teacher]
        expected.append((2 * (1 - end) * pull).mean() / 1e6)  # ∂z_b/∂mean is 1 - b in all samples, on average
    return torch.stack(found).detach(), torch.stack(expected).detach()


def the_gradient_is_that_of_kl(end: float, seeds: int) -> None:
    found, expected = matched(end, seeds)
    error = (found.std() ** 2 + expected.std() ** 2).sqrt() / len(found) ** 0.5
    assert abs(float(found.mean() - expected.mean())) < 4 * error
    assert abs(float(found.mean())) > 20 * error, "a test that can fail"


@pytest.mark.parametrize("end", [0.3, B])
def test_the_gradient_is_that_of_kl_at_the_boundary(end: float) -> None:
    """∇_θ KL(p_s^θ || p_s), each noise level by b² / a: of Gaussians in closed form."""
    the_gradient_is_that_of_kl(end, 30)


def test_a_sample_is_scaled_by_its_distance_to_the_state_that_the_teacher_expects() -> None:
    """g = (E_critic[z_b | z_t] - E_teacher[z_b | z_t]) / mean |z_b - E_teacher[z_b | z_t]|, sample by sample."""
    t = torch.tensor([0.88, 0.9, 0.95, 0.99], dtype=torch.float64)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    z = renoise(x.detach(), x.detach().flip(0), torch.full_like(t, B), t)
    nets: dict[str, FlowMap] = {"student": OTHER, "teacher": EXACT, "critic": OTHER}
    loss = matching(nets, Batch(x.detach(), {}, {}), x, z, t, 1.0, 1e-3, B)
    found = torch.autograd.grad(loss.value, x)[0]
    fake, real = (state_from_velocity(z, u(z, t, t, {}), t, B) for u in (OTHER, EXACT))
    g = ((fake - real) / (x - real).abs().mean(1, keepdim=True)).detach()
    assert torch.allclose(found / found.norm(), g / g.norm(), atol=1e-10)


@pytest.mark.parametrize("t", [0.88, 0.93, 1.0])
def test_the_critic_s_error_counts_by_the_square_of_the_noise_in_its_target(t: float, monkeypatch) -> None:
    """1 / b'², where b' is the derivative of b(t)² = t² - a² s², a = (1 - t) / (1 - s)."""
    at = torch.full((3,), t, dtype=torch.float64, requires_grad=True)
    b = (at**2 - ((1 - at) / (1 - B) * B) ** 2).sqrt()
    x = torch.ones(3, 1, dtype=torch.float64)
    assert torch.allclose(CRITIC._target(x, x, at)[2], torch.autograd.grad(b.sum(), at)[0])

    def error(slope: float) -> float:
        monkeypatch.setattr(CriticMatching, "_target", lambda self, x, noise, t: (x, noise, slope))
        nets: dict[str, FlowMap] = {"student": OTHER, "critic": OTHER}
        one = Batch(torch.zeros(8, 4), {}, {})
        return float(CRITIC(nets, one, Rng.seeded(0), Shared()).value.detach())

    assert error(2.0) == pytest.approx(error(1.0) / 4)


DEFECTS = {
    "noisier": lambda x, noise, s, t: interpolate(x, noise, t)[0],  # as if z_b were clean
    "state_from_velocity": lambda z, v, t, s: data_from_velocity(z, v, t),  # x̂ in place of the state at b
}


@pytest.mark.parametrize("name", DEFECTS)
def test_that_test_sees_what_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, name, DEFECTS[name])
    with pytest.raises(AssertionError):
        the_gradient_is_that_of_kl(0.3, 20)  # at 0.875 little of a sample is data


def test_at_rest_where_the_laws_agree_and_only_there() -> None:
    times = Diagonal(shift=5.0, low=0.02, high=0.98, within=HIGH)
    objective = DistributionMatching(FlowMapBackwardSimulation(within=HIGH), times, w=1.0, end=B)
    student = GaussianFlowMap(0.5, 0.3)
    one = Batch(torch.zeros(512, 4), {}, {})
    for critic, still in ((EXACT, True), (OTHER, False)):
        nets: dict[str, FlowMap] = {"student": student, "teacher": EXACT, "critic": critic}
        loss = objective(nets, one, Rng.seeded(0), Shared())
        grad = torch.autograd.grad(loss.value, student.mean)[0]
        assert (grad.abs() < 1e-7) == still


def pull(critic: GaussianFlowMap, objective: CriticMatching, runs: int = 40) -> Tensor:
    """The mean gradient of the critic's loss in its mean and std, in standard errors."""
    found = []
    one = Batch(torch.zeros(512, 4, dtype=torch.float64), {}, {})
    for seed in range(runs):
        nets: dict[str, FlowMap] = {"student": GaussianFlowMap(0.5, 0.6), "critic": critic}
        loss = objective(nets, one, Rng.seeded(seed), Shared())
        found.append(torch.stack(torch.autograd.grad(loss.value, (critic.mean, critic.std))))
    g = torch.stack(found)
    return g.mean(0) / (g.std(0) / len(g) ** 0.5)


CRITIC = CriticMatching(
    FlowMapBackwardSimulation(within=HIGH), Diagonal(LogitNormal(), 5.0, low=0.02, within=HIGH), end=B
)


def test_the_critic_is_at_rest_at_the_velocity_of_what_it_never_saw_clean() -> None:
    assert (pull(GaussianFlowMap(0.5, 0.6), CRITIC).abs() < 4.5).all()
    assert pull(GaussianFlowMap(1.5, 0.6), CRITIC)[0] > 6


def test_with_samples_at_the_boundary_taken_for_clean_ones_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def clean(self: CriticMatching, x: Latent, noise: Latent, t: Time) -> tuple[Latent, Latent, float]:
        return *interpolate(x, noise, t), 1.0

    monkeypatch.setattr(CriticMatching, "_target", clean)
    assert (pull(GaussianFlowMap(0.5, 0.6), CRITIC).abs() > 10).any()
