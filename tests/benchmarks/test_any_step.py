"""The any-step benchmark end to end, at a size that proves nothing about quality; and its metrics, which are exact."""

import json
import math

import pytest
import torch
from attrs import evolve

from benchmarks import any_step, any_step_report
from benchmarks.metrics2d import directions, outliers, paired_error, sliced_w2, slope, weight_tv
from benchmarks.mixture2d import ExactVelocity, Mixture, Mixture2D, latents, ode_endpoints
from flowmap import Rng, sample
from flowmap.rollout import euler_step

MIXTURE = Mixture()
TINY = evolve(
    any_step.SMOKE,
    seeds=(0, 1),
    stage1=8,
    warmup=2,
    stage2=2,
    batch=64,
    data=1024,
    samples=600,
    steps=(1, 2, 4, 8),
    backbone=Mixture2D().tiny(),
)


def drawn(n, key=0):
    return MIXTURE.draw(n, Rng.seeded(key))


# ---------------------------------------------------------------------------- metrics


def test_equal_sets_are_no_distance_apart_in_any_order():
    x = drawn(600)
    assert sliced_w2(x, x[Rng.seeded(1).permutation(600)], directions()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("shift", [(0.3, 0.0), (0.0, -2.0), (1.0, 1.0)])
def test_a_shift_counts_by_its_mean_square_projection(shift):
    x, d = drawn(600), torch.tensor(shift)
    assert sliced_w2(x, x + d, directions()) == pytest.approx(float(d.norm()) / math.sqrt(2), rel=1e-4)


def test_two_gaussians_are_as_far_as_their_widths():
    """W2(N(0, a²), N(0, b²)) = |a - b| in every direction."""
    z = Rng.seeded(0).noise_like(torch.empty(10_000, 2))
    assert sliced_w2(1.5 * z, z, directions()) == pytest.approx(0.5, rel=0.03)


def test_sets_of_other_size_are_refused():
    with pytest.raises(ValueError, match="3 points against 4"):
        sliced_w2(torch.zeros(3, 2), torch.zeros(4, 2), directions())


def test_paired_error_is_the_mean_distance():
    assert paired_error(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == pytest.approx(3.0)


def test_outliers_are_counted_beyond_four_sigmas():
    off = torch.tensor([[0.0, 0.0], [0.0, 3.9 * MIXTURE.std], [0.0, 4.1 * MIXTURE.std], [0.0, 1.0]])
    assert outliers(MIXTURE.means[0] + off, MIXTURE) == 0.5
    assert outliers(drawn(20_000), MIXTURE) < 2e-3


def test_weights_are_compared_by_total_variation():
    assert weight_tv(MIXTURE.draw_stratified(1200, Rng.seeded(0)), MIXTURE) == pytest.approx(0.0, abs=1e-6)
    assert weight_tv(MIXTURE.means, MIXTURE) == pytest.approx(1 / 6, abs=1e-6)  # 1/8 against 1/12 and 1/6


def test_slope_is_per_doubling():
    assert slope([4, 8, 16, 32], [1.0, 0.75, 0.5, 0.25]) == pytest.approx(-0.25)


# ---------------------------------------------------------------------------- the exact teacher


def test_the_exact_velocity_is_the_posterior_mean():
    """v(z, t) = E[ε - x | z_t = z], checked against self-normalised importance sampling over the data."""
    x, t = drawn(400_000).double(), 0.3
    z = torch.tensor([[0.4, 0.9]], dtype=torch.float64)
    noise = (z - (1 - t) * x) / t
    w = (-noise.square().sum(1) / 2).softmax(0)
    expected = w @ (noise - x)
    got = ExactVelocity(MIXTURE)(latents(z.float()), torch.tensor([t]), torch.tensor([t]), {}).reshape(2)
    torch.testing.assert_close(got.double(), expected, atol=0.02, rtol=0.02)


def test_a_single_mode_is_followed_to_the_closed_form():
    """N(m, s² I): Φ_{0←1}(z) = m + s z."""
    one = Mixture(modes=1)
    z = Rng.seeded(0).noise_like(torch.empty(16, 2))
    ends = ode_endpoints(one, latents(z)).reshape(-1, 2)
    torch.testing.assert_close(ends, one.means + one.std * z, atol=1e-4, rtol=0)


def test_the_reference_has_converged_and_euler_converges_to_it():
    noise = latents(Rng.seeded(3).noise_like(torch.empty(600, 2)))
    ends = ode_endpoints(MIXTURE, noise).reshape(-1, 2)
    assert paired_error(ode_endpoints(MIXTURE, noise, 400).reshape(-1, 2), ends) < 1e-3
    teacher = ExactVelocity(MIXTURE)
    errors = [paired_error(sample(teacher, noise, {}, n, step=euler_step).reshape(-1, 2), ends) for n in (4, 16, 64)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_a_reference_needs_whole_shares():
    with pytest.raises(ValueError, match="must be whole"):
        MIXTURE.draw_stratified(100, Rng.seeded(0))
    with pytest.raises(ValueError, match="multiple of 12"):
        evolve(TINY, samples=100)


# ---------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def values():
    return any_step.run(TINY)[0]


@pytest.fixture(scope="module")
def found(values):
    return any_step_report.summarise(values, TINY, any_step_report.Context(1.0, 1.0, 0))


def test_every_curve_is_complete(found):
    curves = {}
    for record in found["records"]:
        assert set(record) == {"model", "sampler", "steps", "metric", "mean", "std", "seeds", "better"}
        assert math.isfinite(record["mean"]) and record["std"] >= 0 and record["seeds"] == 2
        assert record["metric"] in found["metrics"] and record["better"] == "lower"
        curves.setdefault((record["model"], record["sampler"], record["metric"]), []).append(record["steps"])
    judged = {key[:2]: steps for key, steps in curves.items() if steps != [0]}
    assert all(tuple(steps) == TINY.steps for steps in judged.values())
    assert set(judged) >= set(any_step_report.STYLES)
    slopes = {(s["model"], s["sampler"], s["metric"], s["span"]) for s in found["slopes"]}
    assert len(slopes) == len(judged) * len(found["metrics"]) * len(any_step_report.SPANS)


def test_euler_steps_of_the_exact_velocity_improve(found):
    w2 = {r["steps"]: r["mean"] for r in found["records"] if r["sampler"] == "Euler" and r["metric"] == "sliced_w2"}
    means = [w2[n] for n in TINY.steps]
    assert means == sorted(means, reverse=True)


def test_the_fresh_draw_scores_less_than_an_untrained_student(found):
    w2 = {(r["model"], r["steps"]): r["mean"] for r in found["records"] if r["metric"] == "sliced_w2"}
    assert 2 * w2["data", 0] < w2["stage 1, data", 4]


def test_findings_name_both_sides_and_count_seeds(found):
    for finding in found["findings"]:
        assert finding["expected"] in {"lower", "higher", "not higher"}
        assert 0 <= finding["held_on"] <= finding["seeds"] == 2


def test_the_files_are_written(found, tmp_path):
    any_step_report.write(found, tmp_path / "results")
    written = json.loads((tmp_path / "results" / "any_step_2d.json").read_text())
    assert written == json.loads(json.dumps(found))
    assert {"flowmap", "records", "slopes", "findings", "settings", "context"} <= set(written)
    assert (tmp_path / "results" / "any_step_2d.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "results" / "any_step_2d.md").read_text()
    assert "exact velocity / Euler" in text and "| comparison | expected |" in text


def test_a_seed_gives_the_same_values_alone(values):
    alone = any_step.from_teacher(TINY, 1)
    assert alone and all(value in values for value in alone)


def test_a_smoke_run_never_replaces_the_results():
    with pytest.raises(SystemExit):
        any_step.main(["--smoke"])
