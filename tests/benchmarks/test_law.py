"""The benchmark of the law, end to end at a size that proves nothing; its errors and slopes by hand."""

import json
import math
from statistics import stdev

import pytest
import torch

from benchmarks import kept, law, law_jobs, law_tuning
from benchmarks.curves import interval, reading
from benchmarks.law_jobs import FULL, SMOKE, Judging, calls, recipe
from benchmarks.law_lines import Line, jackknife, lines
from benchmarks.law_rows import ABLATIONS, BATCH, COUNTS, NAMES, ROWS, TEACHER
from flowmap.training.loop import TrainingError

# ---------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    made = tmp_path_factory.mktemp("law")
    assert law.main(["--smoke", "--out", str(made)]) == 0
    return made


def test_every_record_says_what_it_is(out):
    found = json.loads((out / "law.json").read_text())
    assert found[0]["metric"] == "energy_distance"
    wanted = [
        "method",
        "form",
        "sampler",
        "metric",
        "better",
        "steps",
        "mean",
        "se",
        "seeds",
        "samples",
        "floor",
        "calls",
        "seconds",
    ]
    for one in found:
        assert set(wanted) <= one.keys() and math.isfinite(one["mean"]) and one["se"] > 0
        assert (one["seeds"], one["samples"], one["se_of"]) == (1, SMOKE.samples, "samples")
    lines = {(r["method"], r["sampler"]) for r in found}
    assert lines == {("teacher", "euler"), ("real", "euler"), ("anyflow_1", "flow_map"), ("anyflow_1", "consistency")}
    real = {r["metric"]: r["mean"] for r in found if r["method"] == "real"}
    assert all(r["floor"] == real[r["metric"]] for r in found)
    assert "Not run: AnyFlow, stages 1 + 2;" in (out / "law.md").read_text()
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("law.png", "law_all.png"))


def test_at_one_step_there_is_no_noise_to_add(out):
    one = {
        (r["method"], r["sampler"], r["metric"]): r["mean"]
        for r in json.loads((out / "law.json").read_text())
        if r["steps"] == 1
    }
    for metric in law_jobs.METRICS:
        along, renoised = (one["anyflow_1", which, metric] for which in ("flow_map", "consistency"))
        assert along == renoised != one["teacher", "euler", metric]


def test_what_is_finished_is_not_done_again_and_what_is_lost_is(out, monkeypatch):
    trained = []
    whole = law_jobs.distill
    monkeypatch.setattr(law_jobs, "distill", lambda recipe, *a, **k: trained.append(recipe) or whole(recipe, *a, **k))
    lost = Judging(NAMES["anyflow_1"], 0, "flow_map", 4, SMOKE, out / "cache")
    others = {path: path.stat().st_mtime_ns for path in (out / "cache" / "records").iterdir() if path != lost.path}
    before = lost.found
    lost.path.unlink()
    assert law.main(["--smoke", "--out", str(out)]) == 0
    assert not trained  # its student is there: judged again, to the same
    assert lost.found["values"] == before["values"] and lost.found["without"] == before["without"]
    assert others == {path: path.stat().st_mtime_ns for path in others}


def test_another_machine_goes_on_with_what_was_committed(out, tmp_path, monkeypatch):
    here, there = out / "cache", tmp_path / "cache"
    kept.unpack(out / law.JOBS, there)
    records = {file.name: json.loads(file.read_text()) for file in (here / "records").iterdir()}
    assert records == {file.name: json.loads(file.read_text()) for file in (there / "records").iterdir()}
    monkeypatch.setattr(law_jobs, "distill", lambda *a, **k: pytest.fail("was trained again"))
    rows = (NAMES["anyflow_1"],)
    assert all(job.found is not None for job in law_jobs.jobs_of(rows, (0,), SMOKE, there))
    newer = {"values": {}}
    changed = there / "records" / next(iter(records))
    changed.write_text(json.dumps(newer))
    kept.unpack(out / law.JOBS, there)
    assert json.loads(changed.read_text()) == newer  # what is there is not put back


def test_when_the_time_is_over_no_job_is_begun(out, capsys):
    assert law.main(["--smoke", "--out", str(out), "--seeds", "7", "--minutes", "-1"]) == 0
    assert "the time is over" in capsys.readouterr().out
    assert not list((out / "cache" / "records").glob("*_seed7_*"))


def test_what_diverges_is_a_result_and_no_other_error_is(tmp_path, monkeypatch):
    def diverge(*arguments, **more):
        raise TrainingError("not finite")

    def fail(*arguments, **more):
        raise OSError("no space left")

    job = Judging(NAMES["anyflow_1"], 0, "flow_map", 4, SMOKE, tmp_path)
    monkeypatch.setattr(law_jobs, "distill", fail)
    assert "OSError: no space left" in law.complete([job])[0] and job.found is None
    monkeypatch.setattr(law_jobs, "distill", diverge)
    assert law.complete([job]) == [] and job.found["state"] == "diverged"
    assert lines(SMOKE, tmp_path)[0].moments("energy_distance", 4) is None


def test_another_checkout_finds_what_this_one_made(tmp_path, monkeypatch):
    here = law_jobs.told(NAMES["anyflow"].recipe())
    assert str(law_jobs.jobs.ROOT) not in here and str(law_jobs.jobs.ROOT) in str(TEACHER.path)


@pytest.mark.parametrize(
    "wrong", [["--smoke"], ["--samples", "8"], ["--methods", "rcn"], ["--steps", "3"]], ids=" ".join
)
def test_what_is_wrong_is_said_before_anything_is_done(wrong, capsys):
    with pytest.raises(SystemExit):
        law.main(wrong)
    assert "error" in capsys.readouterr().err


# ---------------------------------------------------------------------------- rows


def test_every_method_calls_its_student_as_often(tmp_path):
    wanted = calls(NAMES["anyflow"], FULL, tmp_path)
    for name in ("consistency", "meanflow", "parallel_decoding"):
        assert calls(NAMES[name], FULL, tmp_path) == pytest.approx(wanted, rel=0.01)
    heads = NAMES["parallel_decoding"]
    assert {*COUNTS} <= {
        heads.recipe().backbone.heads // n for n in (1, 2, 4, 8, 16, 32)
    }  # steps are blocks of its grid
    assert heads.samplers == ("flow_map",)
    longer = recipe(NAMES["consistency"], 0, FULL, tmp_path).stages[0]
    assert longer.steps == round(wanted / BATCH / 2)  # 1 G and 1 F


def test_co_training_in_every_second_update_calls_the_student_as_often():
    """A rollout is 3 - 2 / n calls, 1 where n is 1, and stage 1 without guidance 2."""
    rollout = sum(3 - 2 / n for n in COUNTS) / len(COUNTS)
    usual, rarer = (NAMES[name].recipe().stages[1] for name in ("anyflow", "ablation_cotrain_every"))
    assert rarer.steps * (rollout + 1) == pytest.approx(usual.steps * (rollout + 2), rel=0.005)


@pytest.mark.parametrize("row", [*ROWS, *ABLATIONS], ids=lambda row: row.name)
def test_all_learn_from_the_same_clips_without_guidance(row):
    found = row.recipe()
    assert found.data == NAMES["anyflow"].recipe().data and found.teacher == TEACHER
    told = json.dumps(law_jobs.describe(found.stages))
    for word in ('"w": 3', '"guidance": 3', '"w": 4', '"teacher_guidance": 4'):
        assert word not in told


def test_an_ablation_is_one_change_and_those_of_stage_2_share_stage_1():
    own = NAMES["anyflow"].recipe()
    seen = {law_jobs.told(own)}
    for row in ABLATIONS:
        told = law_jobs.told(row.recipe()).replace(row.name, "anyflow")
        assert told not in seen, row.name
        seen.add(told)
    first = own.stages[0]
    shared = {row.name for row in ABLATIONS if row.recipe().stages[0] == first and row.backbone == TEACHER}
    on_policy = {"cotrain_12", "cotrain_0", "cotrain_every", "one_jump", "one_pass"}
    on_policy |= {"critic_2", "budgets_few", "budgets_many", "longer_2"}
    assert shared == {f"ablation_{name}" for name in on_policy}


# ---------------------------------------------------------------------------- errors and slopes


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = [1.0, 4.0, 2.0, 8.0, 5.0]
    without = [(sum(values) - v) / 4 for v in values]
    assert jackknife(without) == pytest.approx(stdev(values) / math.sqrt(5))


def line(by_seed, wobble=0.0):
    cells = {
        n: {
            seed: {
                "values": {"energy_distance": value[k]},
                "without": [{"energy_distance": value[k] + g * wobble} for g in (-1, 1)],
            }
            for seed, value in by_seed.items()
        }
        for k, n in enumerate((4, 8, 16, 32))
    }
    return Line("anyflow", "AnyFlow", "small recipe", "flow_map", cells)


def test_slopes_are_taken_seed_by_seed():
    """Levels that differ widely do not hide that every seed improves by the same."""
    found = line({0: [8.0, 7.0, 6.0, 5.0], 1: [4.0, 3.0, 2.0, 1.0], 2: [9.0, 8.1, 7.2, 6.3]}).slope("energy_distance")
    assert found["by_seed"] == pytest.approx({0: -1.0, 1: -1.0, 2: -0.9})
    assert found["mean"] == pytest.approx(-2.9 / 3) and found["se"] == pytest.approx(0.1 / 3)
    assert (found["seeds"], found["se_of"]) == (3, "seeds")


def test_a_slope_needs_both_ends_and_of_one_seed_has_the_error_of_its_samples():
    whole = line({0: [4.0, 3.0, 2.0, 1.0]}, wobble=0.5)
    assert whole.slope("energy_distance")["mean"] == pytest.approx(-1.0)
    assert whole.slope("energy_distance")["se"] == pytest.approx(0.0)  # the same samples move all points alike
    assert whole.moments("energy_distance", 4)["se"] == pytest.approx(0.5)
    part = Line("a", "a", "", "flow_map", {n: at for n, at in whole.cells.items() if n < 32})
    assert part.slope("energy_distance") is None


@pytest.mark.parametrize("mean, told", [(-0.5, "improves"), (0.5, "gets worse"), (0.4, "flat"), (-0.1, "flat")])
def test_a_reading_is_beyond_the_interval(mean, told):
    assert interval(0.1, 3) == pytest.approx(0.4303, abs=1e-4)  # Student's t with two degrees of freedom
    assert reading({"mean": mean, "se": 0.1, "seeds": 3}) == told
    assert reading({"mean": mean, "se": None, "seeds": 1}) == "one seed says nothing"


def test_what_is_closer_to_real_clips_scores_less():
    """Through the whole of the judging: real clips, and the same moved towards the mean of their prompt."""
    bench = law_jobs.bench_of(SMOKE)
    real = bench.real(law_jobs.real_clips, 3)
    rows = torch.arange(len(real.prompts)) % 16
    means = torch.stack([real.latents[rows == k].mean(0) for k in range(16)])[rows]
    less = bench._samples(means + 0.5 * (real.latents - means), None)
    good, bad = law_jobs.measured(real)["values"], law_jobs.measured(less)["values"]
    assert bad["variety"] == pytest.approx(0.5 * good["variety"]) and good["energy_distance"] < bad["energy_distance"]


# ---------------------------------------------------------------------------- tuning


def put(row, folder, *values):
    for trial, value in zip(law_tuning.trials(row, SMOKE, folder), values, strict=True):
        law_jobs.jobs.write(trial.path, {"values": {} if value is None else {"energy_distance": value}})


def test_the_best_rate_of_the_sweep_is_taken_once_all_were_tried(tmp_path):
    row = NAMES["consistency"]
    first = law_tuning.trials(row, SMOKE, tmp_path)[0]
    law_jobs.jobs.write(first.path, {"values": {"energy_distance": 0.1}})
    assert law_tuning.rated(row, SMOKE, tmp_path).rate == row.rate
    put(row, tmp_path, 0.3, None, 0.2)  # the second diverged
    assert law_tuning.rated(row, SMOKE, tmp_path).rate == pytest.approx(3 * row.rate)
    put(NAMES["anyflow"], tmp_path, 0.1, 0.2, 0.3)
    assert law_tuning.rated(NAMES["anyflow_1"], SMOKE, tmp_path).rate == pytest.approx(1 / 3)


def test_the_sweep_is_judged_on_other_prompts_and_another_seed(tmp_path):
    trial = law_tuning.trials(NAMES["consistency"], SMOKE, tmp_path)[0]
    assert trial.seed not in (0, 1, 2) and trial.tuning
    asked = law_jobs.bench_of(SMOKE, True).curve.prompts
    assert len(asked) == 16 and not {*asked} & {*law_jobs.bench_of(SMOKE).curve.prompts}


def test_equal_time_is_as_much_longer_as_the_method_is_quicker(tmp_path):
    for name, seconds in (("anyflow", 300.0), ("consistency", 200.0)):
        row = NAMES[name]
        done = Judging(row, 0, row.samplers[0], 4, SMOKE, tmp_path)
        law_jobs.jobs.write(done.path, {"values": {"energy_distance": 0.1}, "without": [], "seconds": seconds})
    longer = law_tuning.timed(NAMES["consistency"], FULL, tmp_path)
    assert longer is None  # of other settings
    longer = law_tuning.timed(NAMES["consistency"], SMOKE, tmp_path)
    assert (longer.name, longer.longer) == ("consistency_time", 1.5)
    of = {one.name: recipe(one, 0, FULL, tmp_path).stages[0].steps for one in (longer, NAMES["consistency"])}
    assert of["consistency_time"] == pytest.approx(1.5 * of["consistency"], rel=1e-2)


def test_a_difference_is_taken_on_the_same_samples():
    mine, teacher = line({0: [4.0, 3.0, 2.0, 1.0]}, wobble=0.5), line({0: [10.0, 8.0, 6.0, 4.0]}, wobble=0.5)
    apart = mine.beside(teacher, "energy_distance", 4)
    assert (apart["mean"], apart["se"]) == (pytest.approx(-6.0), pytest.approx(0.0))
    half = mine.beside(teacher, "energy_distance", 4, 0.5)
    assert half["mean"] == pytest.approx(-1.0) and half["se"] == pytest.approx(0.25)


def test_what_was_tuned_and_what_was_timed_is_reported(tmp_path):
    put(NAMES["consistency"], tmp_path, 0.3, 0.4, 0.2)
    tuned = law_tuning.rated(NAMES["consistency"], SMOKE, tmp_path)
    for row, seconds in ((NAMES["anyflow"], 300.0), (tuned, 200.0)):
        done = Judging(row, 0, row.samplers[0], 4, SMOKE, tmp_path)
        law_jobs.jobs.write(done.path, {"values": {"energy_distance": 0.1}, "without": [], "seconds": seconds})
    timed = law_tuning.timed(NAMES["consistency"], SMOKE, tmp_path)
    done = Judging(timed, 0, "consistency", 4, SMOKE, tmp_path)
    law_jobs.jobs.write(done.path, {"values": {"energy_distance": 0.1}, "without": []})
    assert {line.name for line in lines(SMOKE, tmp_path)} == {"anyflow", "consistency", "consistency_time"}
