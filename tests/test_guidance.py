"""Guidance as part of the student. On 1-D Gaussians every fixed point is known: that of the exact form is the flow map
of the guided field, that of the fused form is not off the diagonal, and its samples are biased by a known amount."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowmap import Batch, FlowMap, Rng, sample
from flowmap._types import Cache, Cond, Latent, Shared, Time
from flowmap.derivative import CentralDifference, ForwardMode
from flowmap.guidance import Exact, Fused, Guidance
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.testing import GuidedGaussianFlowMap
from flowmap.testing.gaussian import quadrature

W = 3.0
M, S, S_NULL = 1.0, 0.5, 1.25**0.5  # the condition is N(1, ½²), ∅ is N(0, 1.25)


class At:
    """One (t, r) for every sample."""

    def __init__(self, t: float, r: float) -> None:
        self.t, self.r = t, r

    def __call__(self, n: int, rng: Rng, like: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((n,), self.t, dtype=torch.float64), torch.full((n,), self.r, dtype=torch.float64)


def batch(seed: int, conditional: bool, n: int = 500) -> Batch:
    noise = Rng.seeded(9, seed).noise_like(torch.zeros(n, 1, dtype=torch.float64))
    x = M + S * noise if conditional else S_NULL * noise
    return Batch(x, {"label": torch.full((n,), float(conditional))}, {"label": torch.zeros(1)})


def pull(student: FlowMap, guidance: Guidance, t: float, r: float, *, conditional: bool = True) -> Tensor:
    """[2] the expected gradient of the loss at `student` in its scale and bias, in units of its standard error."""
    objective = FlowMapMatching(At(t, r), ForwardMode(), guidance=guidance)
    gradients = []
    for seed in range(12):
        value = objective({"student": student}, batch(seed, conditional), Rng.seeded(seed), Shared()).value
        gradients.append(torch.stack(torch.autograd.grad(value, (student.scale, student.bias))))
    g = torch.stack(gradients)
    return (g.mean(0) / (g.std(0) / len(g) ** 0.5)).abs()


OFF = [(0.9, 0.0), (0.9, 0.5), (0.6, 0.2)]
T5 = 5.0  # standard errors of a mean of twelve that chance does not reach (Student's t, 11 degrees of freedom: 2e-4)


@pytest.mark.parametrize("t, r", [*OFF, (0.6, 0.6)])
def test_the_exact_form_rests_at_the_flow_map_of_the_guided_field(t: float, r: float) -> None:
    assert (pull(GuidedGaussianFlowMap(w=W), Exact(W, drop=0.0), t, r) < T5).all()


@pytest.mark.parametrize("t, r", [*OFF, (0.6, 0.6)])
@pytest.mark.parametrize("wrong", [{"scale": 1.1}, {"bias": 0.2}, {"w": 2.0}])
def test_the_exact_form_pulls_at_a_wrong_map(t: float, r: float, wrong: dict[str, float]) -> None:
    assert (pull(GuidedGaussianFlowMap(**{"w": W, **wrong}), Exact(W, drop=0.0), t, r) > 8).any()


@pytest.mark.parametrize("t, r", OFF)
def test_the_fused_form_pulls_away_from_the_guided_flow_map_off_the_diagonal(t: float, r: float) -> None:
    assert (pull(GuidedGaussianFlowMap(w=W), Fused(W, drop=0.0), t, r) > 20).any()


def test_the_fused_form_rests_at_the_guided_velocity_on_the_diagonal() -> None:
    assert (pull(GuidedGaussianFlowMap(w=W), Fused(W, drop=0.0), 0.6, 0.6) < T5).all()


@pytest.mark.parametrize("guidance", [Exact(W, drop=1.0), Exact(W, drop=0.0)])
def test_a_dropped_prompt_is_unguided(guidance: Exact) -> None:
    """Where it is dropped the target is v itself, so ∅ stays ∅: with drop = 1, or where ∅ is the prompt."""
    conditional = guidance.drop == 0.0
    student = GuidedGaussianFlowMap(w=W)
    at_rest = pull(student, guidance, 0.8, 0.3, conditional=conditional)
    assert (at_rest < T5).all()


class FusedFixedPoint(FlowMap):
    """Where the fused form comes to rest, affine in z: from its two equations, solved with integrating factors.

    u_∅ = v_∅ - (t - r) / w · D_{v_∅} u_∅,      u_c = w v_c + (1 - w) u_∅ - (t - r) D_{v_c} u_c.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = (torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (1.0, 0.0))
        self.known: dict[tuple[float, float, bool], tuple[float, float]] = {}

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        label = cond["label"].expand(len(z))
        a, b = torch.zeros_like(t), torch.zeros_like(t)
        for t_, r_, c in {(float(t_), float(r_), bool(c)) for t_, r_, c in zip(t, r, label, strict=True)}:
            key = (t_, r_, c)
            if key not in self.known:
                slope, offset = (conditional if c else unconditional)(torch.tensor([t_], dtype=torch.float64), r_)
                self.known[key] = float(slope), float(offset)
            where = (t == t_) & (r == r_) & (label.bool() == c)
            a, b = (torch.where(where, v, old) for v, old in zip(self.known[key], (a, b), strict=True))
        return self.scale * (a[:, None] * z + b[:, None]) + self.bias


X, WEIGHT = (torch.tensor(part, dtype=torch.float64) for part in quadrature(16))


def field(s: Tensor, m: float, std: float) -> tuple[Tensor, Tensor, Tensor]:
    """(slope, offset, σ) of the velocity of N(m, std²) at time s."""
    variance = ((1 - s) * std) ** 2 + s**2
    a = (s - (1 - s) * std**2) / variance
    return a, -m - a * (1 - s) * m, variance.sqrt()


def unconditional(t: Tensor, r: float) -> tuple[Tensor, Tensor]:
    """(slope, offset) of u_∅, shaped as t; m = 0, so there is no offset."""
    s = r + (t[..., None] - r) * X
    a, _, sigma = field(s, 0.0, S_NULL)
    _, _, now = field(t, 0.0, S_NULL)
    return (WEIGHT * W * X ** (W - 1) * a * sigma).sum(-1) / now, torch.zeros_like(t)


def slope(t: Tensor, r: float) -> Tensor:
    """Of u_c: (τ σ_c α)' = σ_c (w a_c + (1 - w) α_∅)."""
    s = r + (t[..., None] - r) * X
    a, _, sigma = field(s, M, S)
    _, _, now = field(t, M, S)
    return (WEIGHT * sigma * (W * a + (1 - W) * unconditional(s, r)[0])).sum(-1) / now


def conditional(t: Tensor, r: float) -> tuple[Tensor, Tensor]:
    """Of u_c: (τ β)' = w b_c + (1 - w) β_∅ - τ α b_c, with β_∅ = 0."""
    s = r + (t[..., None] - r) * X
    _, b, _ = field(s, M, S)
    return slope(t, r), (WEIGHT * (W * b - (s - r) * slope(s, r) * b)).sum(-1)


@pytest.mark.parametrize("t, r", OFF)
@pytest.mark.parametrize("conditional", [True, False])
def test_the_fused_form_rests_at_its_own_fixed_point(t: float, r: float, conditional: bool) -> None:
    objective = FlowMapMatching(At(t, r), CentralDifference(), guidance=Fused(W, drop=0.0))
    student, gradients = FusedFixedPoint(), []
    for seed in range(12):
        data = batch(seed, conditional)
        value = objective({"student": student}, data, Rng.seeded(seed), Shared()).value
        gradients.append(torch.stack(torch.autograd.grad(value, (student.scale, student.bias))))
    g = torch.stack(gradients)
    assert (g.mean(0).abs() < T5 * g.std(0) / len(g) ** 0.5).all()


def moments(u: FlowMap, steps: int) -> tuple[float, float]:
    """Mean and standard deviation of the conditional samples: of the affine map, from two states."""
    noise = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    x = sample(u, noise, {"label": torch.ones(2)}, steps, shift=5.0)
    return float(x[0]), abs(float(x[1] - x[0]))


@pytest.mark.parametrize(
    "steps, mean, std", [(1, 2.222, 0.913), (2, 1.579, 0.665), (4, 1.139, 0.216), (8, 1.274, 0.022)]
)
def test_samples_of_the_fused_form_are_biased_by_as_much_as_theory_says(steps: int, mean: float, std: float) -> None:
    assert moments(FusedFixedPoint(), steps) == pytest.approx((mean, std), abs=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_samples_of_the_exact_form_are_those_of_the_guided_field_in_any_number_of_steps(steps: int) -> None:
    assert moments(GuidedGaussianFlowMap(w=W), steps) == pytest.approx((1.4, 0.1), abs=5e-4)


def test_the_forms_have_the_same_gradient_on_the_diagonal() -> None:
    """For u_c; (u + (w - 1) u_∅) / w - v has 1 / w of the residual and of the derivative: hence the weight w⁻²."""
    student = GuidedGaussianFlowMap(w=2.0)
    losses = [
        FlowMapMatching(At(0.6, 0.6), guidance=g)({"student": student}, batch(0, True, 100), Rng.seeded(0), Shared())
        for g in (Exact(W, 0.0), Fused(W, 0.0))
    ]
    exact, fused = (torch.stack(torch.autograd.grad(x.value, (student.scale, student.bias))) for x in losses)
    torch.testing.assert_close(exact, fused)


@pytest.mark.parametrize("guidance", [Exact(1.0), Fused(1.0)])
def test_w_of_one_is_no_guidance(guidance: Guidance) -> None:
    u, null, v = torch.ones(2, 1), torch.zeros(2, 1), torch.full((2, 1), 3.0)
    assert torch.equal(guidance.velocity(v, null, torch.tensor([False, True])), v)
    assert torch.equal(guidance.implied(u, null), u)
    assert guidance.scale == guidance.weight == 1.0


@pytest.mark.parametrize("kind", [Exact, Fused])
@pytest.mark.parametrize("field, value", [("w", 0.5), ("drop", 1.5), ("drop", -0.1)])
def test_a_wrong_value_is_named(kind: type[Exact] | type[Fused], field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"\.{field} = .*: must be"):
        kind(**{field: value})
