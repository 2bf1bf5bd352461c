"""The any-step benchmark end to end, at a size that proves nothing about quality; and its metrics, which are exact."""

import json
import math

import pytest
import torch
from attrs import evolve

from benchmarks import any_step, any_step_report, jobs, plane
from benchmarks.any_step import Benchmark
from benchmarks.any_step_results import Line, Results
from benchmarks.curves import slope_of
from benchmarks.methods2d import ENTRIES, NAMES, recipe
from benchmarks.metrics2d import directions, outliers, paired_error, sliced_w2, slope, weight_tv
from benchmarks.mixture2d import ExactVelocity, Mixture, Mixture2D, Mlp, latents, ode_endpoints
from flowmap import Rng, TensorData, distill, sample
from flowmap.rollout import euler_step
from flowmap.training.loop import TrainingError

MIXTURE = Mixture()
TINY = evolve(plane.SMOKE, entries=tuple(NAMES[name] for name in ("anyflow", "consistency")), seeds=(0, 1))


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


# ---------------------------------------------------------------------------- the network


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Mlp(16, 2)


def test_a_lifted_network_has_its_velocity_at_every_end_and_can_learn_another():
    u, z, t = network(), latents(drawn(8)), torch.linspace(0.1, 1.0, 8)
    v, zero = u(z, t, t, {}), torch.zeros_like(t)
    assert (u(z, t, zero, {}) - v).abs().max() > 1e-2
    u.lift()
    for r in (t, t / 2, zero):
        torch.testing.assert_close(u(z, t, r, {}), v)
    u(z, t, zero, {}).square().mean().backward()
    assert u.hidden[0][0].weight.grad[:, -10:].abs().max() > 0


def test_student_and_critic_begin_as_the_start_and_its_weights_tell_recipes_apart(tmp_path):
    spec = Mixture2D(width=16, depth=2)
    for name, seed in (("a", 0), ("b", 1)):
        spec.save(network(seed), tmp_path / name)
    a, b = (evolve(spec, start=tmp_path / name) for name in ("a", "b"))
    nets = a.build(frozenset({"student", "critic"}), device=torch.device("cpu"), dtype=torch.float32)
    z, t = latents(drawn(4)), torch.full((4,), 0.5)
    for u in nets.values():
        torch.testing.assert_close(u(z, t, t / 2, {}), network(0)(z, t, t / 2, {}))
    assert a.fingerprint() != b.fingerprint() and spec.fingerprint() is None


# ---------------------------------------------------------------------------- the methods


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_method_trains_on_points(entry):
    data = TensorData(latents(drawn(64)))
    own = recipe(Mixture2D().tiny(), data)
    few = evolve(entry.trained(own).capped(2), stages=[evolve(s, batch=8) for s in entry.trained(own).capped(2).stages])
    student = distill(few, device="cpu")
    assert all(p.isfinite().all() for p in student.parameters())


def test_what_takes_the_number_of_elements_takes_that_of_a_point():
    weights = [weight for weight, _ in NAMES["rcm"].trained(own_recipe()).stages[-1].method.updates[0].terms]
    assert weights[0] == pytest.approx(100 * math.sqrt(2 / (21 * 16 * 60 * 104)))


def own_recipe():
    return recipe(Mixture2D().tiny(), TensorData(latents(drawn(8))))


# ---------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Benchmark.of(TINY, tmp_path_factory.mktemp("cache"))
    assert made.run(workers=0) == []
    return made


@pytest.fixture(scope="module")
def found(bench):
    return any_step_report.summarise(bench.results())


def test_every_line_has_a_value_for_every_seed_and_number_of_steps(found):
    names = ["teacher", "start", "anyflow", "anyflow_renoised", "consistency"]
    assert [line["method"] for line in found["lines"]] == names
    assert [line["sampler"] for line in found["lines"]] == ["euler", "euler", "flow_map", "consistency", "consistency"]
    assert all(line["seeds"] == [0, 1] for line in found["lines"])
    records = {(r["method"], r["metric"], r["steps"]): r for r in found["records"]}
    assert len(records) == 5 * len(any_step_report.STUDY.metrics) * len(TINY.steps)
    assert all(math.isfinite(r["mean"]) and r["seeds"] == 2 for r in records.values())
    assert found["fresh"]["sliced_w2"]["seeds"] == 2 and found["fresh"]["paired_error"]["seeds"] == 0


def test_the_teacher_improves_and_stands_above_a_fresh_draw(found):
    w2 = [r["mean"] for r in found["records"] if (r["method"], r["metric"]) == ("teacher", "sliced_w2")]
    assert w2 == sorted(w2, reverse=True) and found["fresh"]["sliced_w2"]["mean"] < w2[0]
    told = {s["method"]: s for s in found["slopes"] if s["primary"]}
    assert told["teacher"]["slope"] < 0


def test_at_one_step_there_is_no_noise_to_add(found):
    one = {r["method"]: r["by_seed"] for r in found["records"] if (r["metric"], r["steps"]) == ("sliced_w2", 1)}
    assert one["anyflow"] == one["anyflow_renoised"] != one["consistency"]


def test_the_other_sampler_adds_noise(found):
    records = {(r["method"], r["metric"], r["steps"]): r["by_seed"] for r in found["records"]}
    own, other = (records[name, "paired_error", 8] for name in ("anyflow", "anyflow_renoised"))
    assert all(other[seed] > 1.2 * own[seed] for seed in (0, 1))  # it does not follow the path of its noise


def test_a_run_has_the_budget_and_a_trial_its_share(bench):
    for entry in TINY.entries:
        plan = bench.plans[entry.name]
        (run, *_), (trial, *_) = bench.finals(entry), bench.trials(entry)
        assert tuple(stage.steps for stage in run.recipe.stages) == plan.iterations
        assert abs(trial.recipe.stages[0].steps - plan.iterations[0] / 2) <= 0.5
        rates = [job.recipe.stages[0].optimizer_of("student").lr for job in bench.trials(entry)]
        assert rates[1] / rates[0] == pytest.approx(3.0)


def test_a_tangent_is_a_call(tmp_path):
    settings = evolve(TINY, budget=TINY.batch * 300)
    assert any_step.plan(NAMES["scm"], settings, tmp_path).iterations == (100,)  # 1 G and 1 J
    assert any_step.plan(NAMES["consistency"], settings, tmp_path).iterations == (150,)  # 1 G and 1 F


def test_every_method_tries_the_same_rates_and_trains_with_the_best(bench, found):
    for entry, one in zip(TINY.entries, found["sweep"], strict=True):
        assert [trial["factor"] for trial in one["trials"]] == list(TINY.factors)
        best = min(one["trials"], key=lambda trial: trial["sliced_w2"])
        assert one["picked"] == best["factor"]
        assert {final.factor for final in bench.finals(entry)} == {best["factor"]}


def test_every_method_calls_its_student_as_often(bench):
    settings = evolve(TINY, budget=1_000_000, entries=ENTRIES)
    plans = [any_step.plan(entry, settings, bench.folder) for entry in ENTRIES]
    for plan in plans:
        assert plan.cost["student"].total == pytest.approx(1_000_000, rel=0.01)


def test_what_is_finished_is_not_done_again_and_what_is_lost_is(bench, monkeypatch):
    trained, whole = [], distill
    monkeypatch.setattr(plane, "distill", lambda recipe, **more: trained.append(recipe) or whole(recipe, **more))
    assert bench.run(workers=0) == [] and not trained
    lost = bench.finals(NAMES["consistency"])[1]
    before = lost.found
    lost.path.unlink()
    assert bench.run(workers=0) == []
    assert [recipe.seed for recipe in trained] == [1]
    assert lost.found["values"] == before["values"]


def test_other_settings_are_other_results(bench):
    def under(**change):
        return evolve(bench, settings=evolve(TINY, **change))

    changes = ({}, {"samples": 1200}, {"steps": (1, 4, 16)})
    once = evolve(NAMES["anyflow"], renoised=False)
    paths = [under(**change).job(NAMES["anyflow"], "final", 0).path for change in changes]
    assert len({*paths, bench.job(once, "final", 0).path}) == 4
    assert len({under(**change).backbone.start for change in ({}, {"data": 512}, {"batch": 8}, {"start": 5})}) == 4


def test_when_the_time_is_over_no_job_is_begun_and_the_report_says_what_is_missing(bench, tmp_path):
    late = evolve(bench, settings=evolve(TINY, seeds=(0, 1, 7)))
    failed = late.run(workers=0, seconds=-1.0)
    assert len(failed) == 1 + len(TINY.entries) and all("the time is over" in one for one in failed)
    told = any_step_report.markdown(any_step_report.summarise(late.results()))
    assert "Fewer training seeds than the 3 asked: teacher (2), the start (2), AnyFlow (2)" in told


def test_a_run_that_diverges_is_a_result_and_no_other_error_is(bench, tmp_path, monkeypatch):
    alone = evolve(bench, settings=evolve(TINY, entries=(NAMES["consistency"],), seeds=(0,), data=500))
    alone.begin()

    def diverge(recipe, **more):
        raise TrainingError("not finite")

    def fail(recipe, **more):
        raise OSError("no space left")

    monkeypatch.setattr(plane, "distill", fail)
    failed = alone.run(workers=0)
    assert len(failed) == 2 and "OSError: no space left" in failed[0]
    assert alone.picked(NAMES["consistency"]) is None and not alone.results().trials
    monkeypatch.setattr(plane, "distill", diverge)
    assert alone.run(workers=0) == []
    assert alone.picked(NAMES["consistency"]) is None
    told = any_step_report.markdown(any_step_report.summarise(alone.results()))
    assert "| CD | diverged | diverged | – |" in told


def test_the_files_are_written(found, tmp_path):
    any_step_report.write(found, tmp_path)
    assert json.loads((tmp_path / "any_step.json").read_text())["slopes"][0]["primary"]
    assert (tmp_path / "any_step.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "any_step.md").read_text()
    assert "AnyFlow: the same weights re-noised" in text and "Not finished" not in text
    (tmp_path / "any_step.md").unlink()
    assert any_step.main(["--render", str(tmp_path / "any_step.json")]) == 0
    assert (tmp_path / "any_step.md").read_text() == text


def test_the_command_line_plans_and_reports(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    chosen = ["--methods", "anyflow", "consistency", "--smoke", "--out", str(tmp_path), "--cache", str(bench.folder)]
    assert any_step.main([*chosen, "--plan"]) == 0
    assert "2 runs, 4 trials of 50%" in capsys.readouterr().out and not (tmp_path / "any_step.md").exists()
    assert any_step.main([*chosen, "--report-only"]) == 0
    assert "of 1 training seeds" in (tmp_path / "any_step.md").read_text()
    assert any_step.main([*chosen, "--report-only", "--seeds", "0", "7"]) == 0
    assert "Not finished" in (tmp_path / "any_step.md").read_text()


WRONG = (["--smoke"], ["--seeds", "5"], ["--budget", "0", "--out", "x"], ["--methods", "rcn"])


@pytest.mark.parametrize("wrong", WRONG, ids=" ".join)
def test_what_is_wrong_is_said_before_anything_is_done(wrong, capsys):
    with pytest.raises(SystemExit):
        any_step.main(wrong)
    assert "error" in capsys.readouterr().err


# ---------------------------------------------------------------------------- learning rates, and what is read


def test_where_the_best_rate_is_the_last_one_another_is_tried():
    def put(more, **scores):
        score = {1 / 3: None, 1.0: scores.get("a"), 3.0: scores.get("b"), 9.0: scores.get("c")}.get
        found = jobs.tried((1.0, 3.0), more, score)
        return found, jobs.least(found, score)

    assert put(1, a=5.0) == ([1.0, 3.0], None)
    assert put(1, a=5.0, b=2.0) == ([1.0, 3.0, 9.0], None)
    assert put(1, a=5.0, b=2.0, c=2.5) == ([1.0, 3.0, 9.0], 3.0)
    assert put(1, a=5.0, b=2.0, c=1.5) == ([1.0, 3.0, 9.0], 9.0)
    assert put(2, a=5.0, b=2.0, c=1.5) == ([1.0, 3.0, 9.0, 27.0], None)
    assert put(1, a=1.0, b=2.0) == ([1 / 3, 1.0, 3.0], None)
    assert put(1, a=math.inf, b=math.inf) == ([1.0, 3.0], None)


def synthetic(method, which, by_seed):
    def values(curve):
        steps = zip((4, 8, 16, 32), curve, strict=True)
        return [{"method": method, "sampler": which, "steps": n, "metric": "sliced_w2", "value": v} for n, v in steps]

    return [{"method": method, "seed": s, "code": "", "values": values(curve)} for s, curve in by_seed.items()]


def test_a_slope_is_a_share_of_the_value_at_four_steps_and_below_zero_where_it_improves():
    curve = {2: {0: 9.0}, 4: {0: 8.0, 1: 4.0}, 8: {0: 6.0, 1: 3.0}, 16: {0: 4.0, 1: 2.0}, 64: {0: 9.0}}
    assert slope_of(curve, "lower")["mean"] == pytest.approx(-0.25)  # -2 of 8 a doubling, and -1 of 4
    assert slope_of(curve, "lower")["se"] == pytest.approx(0.0)  # it is the levels that differ
    assert slope_of(curve, "higher")["mean"] == pytest.approx(0.25)
    assert slope_of({4: {0: 8.0}, 64: {0: 6.0}}, "lower") is None


def test_the_report_reads_what_the_numbers_say():
    down = synthetic("anyflow", "flow_map", {s: [8, 6, 4, 2] for s in range(3)})
    up = synthetic("rcm", "consistency", {s: [4, 5, 6, 7 + s] for s in range(3)})
    lines = (Line("anyflow", "AnyFlow", "AnyFlow"), Line("rcm", "rCM", "consistency"))
    found = any_step_report.summarise(Results({"seeds": [0, 1, 2]}, lines, {}, {}, [], [*down, *up]))
    slopes = {s["method"]: s for s in found["slopes"]}
    assert slopes["anyflow"]["slope"] == pytest.approx(-0.25) and slopes["anyflow"]["reading"] == "improves"
    assert slopes["rcm"]["slope"] == pytest.approx(0.325) and slopes["rcm"]["reading"] == "gets worse"
    readings = {c["steps"]: (c["other"], c["reading"]) for c in found["comparisons"]}
    assert readings == {4: ("rcm", "worse"), 8: ("rcm", "worse"), 16: ("rcm", "better"), 32: ("rcm", "better")}
