"""The video benchmark, end to end at a size that proves nothing; what it counts, and what its report reads."""

import json
import math

import pytest
import torch
from attrs import evolve

from benchmarks import any_step_video, any_step_video_report, jobs, video_jobs
from benchmarks.any_step_results import Line, Results
from benchmarks.any_step_video import NAMES, Benchmark, main
from benchmarks.any_step_video_report import score
from benchmarks.budget import Calls, Meter
from benchmarks.curves import reading
from flowmap.training.loop import TrainingError
from tests.toys import CHUNK, FRAMES, Toy, data

TINY = evolve(
    video_jobs.SMOKE,
    entries=tuple(NAMES[name] for name in ("anyflow", "consistency")),
    seeds=(0, 1),
    budget=24,
    samples=4,
    clips=16,
)


# ---------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Benchmark.of(TINY, tmp_path_factory.mktemp("cache"))
    assert made.run(workers=0) == []
    return made


@pytest.fixture(scope="module")
def found(bench):
    return any_step_video_report.summarise(bench.results())


def test_every_line_has_a_value_for_every_seed_and_number_of_steps(found):
    assert [line["method"] for line in found["lines"]] == ["teacher", "anyflow", "anyflow_renoised", "consistency"]
    assert [line["sampler"] for line in found["lines"]] == ["euler", "flow_map", "consistency", "consistency"]
    assert all(line["seeds"] == [0, 1] for line in found["lines"])
    records = {(r["method"], r["metric"], r["steps"]): r for r in found["records"]}
    assert len(records) == 4 * len(any_step_video_report.STUDY.metrics) * len(TINY.steps)
    assert all(math.isfinite(r["mean"]) and r["seeds"] == 2 for r in records.values())
    assert all(one["seeds"] == 2 for one in found["real"].values())


def test_at_one_step_there_is_no_noise_to_add(found):
    one = {r["method"]: r["by_seed"] for r in found["records"] if (r["metric"], r["steps"]) == ("frechet_distance", 1)}
    assert one["anyflow"] == one["anyflow_renoised"] != one["consistency"]


def test_every_method_tries_the_same_rates_and_trains_with_the_best(bench, found):
    for entry, one in zip(TINY.entries, found["sweep"], strict=True):
        assert [trial["factor"] for trial in one["trials"]] == list(TINY.factors)
        best = min(one["trials"], key=lambda trial: trial["frechet_distance"])
        assert one["picked"] == best["factor"]
        assert {final.factor for final in bench.finals(entry)} == {best["factor"]}


def test_where_the_best_rate_is_the_last_one_another_is_tried(bench, tmp_path):
    entry = NAMES["consistency"]
    alone = evolve(bench, folder=tmp_path, settings=evolve(TINY, entries=(entry,), factors=(1.0, 3.0), more=1))

    def put(*scores):
        for trial, value in zip(alone.trials(entry), scores, strict=True):
            values = [{"metric": "frechet_distance", "steps": 4, "value": value}]
            jobs.write(trial.path, {"factor": trial.factor, "values": values})
        return [trial.factor for trial in alone.trials(entry)], alone.picked(entry)

    assert put(5.0, 2.0) == ([1.0, 3.0, 9.0], None)
    assert put(5.0, 2.0, 2.5) == ([1.0, 3.0, 9.0], 3.0)
    assert put(5.0, 2.0, 1.5) == ([1.0, 3.0, 9.0], 9.0)
    assert put(5.0, 6.0, 1.5) == ([1 / 3, 1.0, 3.0], None)
    assert put(4.0, 5.0, 6.0) == ([1 / 3, 1.0, 3.0], 1 / 3)


def test_what_is_finished_is_not_done_again_and_what_is_lost_is(bench, monkeypatch):
    trained = []
    whole = video_jobs.distill
    monkeypatch.setattr(video_jobs, "distill", lambda recipe, *a, **k: trained.append(recipe) or whole(recipe, *a, **k))
    assert bench.run(workers=0) == [] and not trained
    lost = bench.finals(NAMES["consistency"])[1]
    before = lost.found
    lost.path.unlink()
    assert bench.run(workers=0) == [] and not trained  # its student is there: judged again, to the same
    assert lost.found == before
    lost.path.unlink()
    for student in (lost.folder / "students").glob("consistency*"):
        student.unlink()
    assert bench.run(workers=0) == []
    assert [recipe.seed for recipe in trained] == [1]
    assert lost.found["values"] == before["values"]


def test_other_settings_are_other_results(bench):
    entry = NAMES["anyflow"]
    paths = {
        evolve(bench.finals(entry)[0], settings=evolve(TINY, **change)).path
        for change in ({}, {"samples": 5}, {"steps": (1, 4, 16)}, {"clips": 32}, {"batch": 8})
    }
    assert len(paths) == 5


def test_the_files_are_written_and_say_what_is_missing(bench, found, tmp_path):
    any_step_video_report.write(found, tmp_path)
    assert json.loads((tmp_path / "any_step_video.json").read_text())["slopes"][0]["primary"]
    assert (tmp_path / "any_step_video.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "any_step_video.md").read_text()
    assert "AnyFlow: the same weights re-noised" in text and "Not finished" not in text
    more = evolve(bench, settings=evolve(TINY, seeds=(0, 1, 7)))
    told = any_step_video_report.markdown(any_step_video_report.summarise(more.results()))
    assert "Fewer training seeds than the 3 asked: teacher (2), AnyFlow (2)" in told


def test_a_run_that_diverges_is_a_result_and_no_other_error_is(bench, tmp_path, monkeypatch):
    alone = evolve(bench, folder=tmp_path, settings=evolve(TINY, entries=(NAMES["consistency"],), seeds=(0,)))

    def diverge(recipe, *arguments, **more):
        raise TrainingError("not finite")

    def fail(recipe, *arguments, **more):
        raise OSError("no space left")

    monkeypatch.setattr(video_jobs, "distill", fail)
    failed = alone.run(workers=0)
    assert len(failed) == 2 and "OSError: no space left" in failed[0]
    assert alone.picked(NAMES["consistency"]) is None and not alone.results().trials
    monkeypatch.setattr(video_jobs, "distill", diverge)
    assert alone.run(workers=0) == []
    assert [score(one) for one in alone.results().trials] == [math.inf, math.inf]
    assert alone.picked(NAMES["consistency"]) is None
    told = any_step_video_report.markdown(any_step_video_report.summarise(alone.results()))
    assert "| CD | diverged | diverged | – |" in told


def test_the_command_line_plans_and_reports(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    chosen = ["--methods", "anyflow", "consistency", "--smoke", "--out", str(tmp_path), "--cache", str(bench.folder)]
    assert main([*chosen, "--plan"]) == 0
    assert "2 runs, 4 trials of 50%" in capsys.readouterr().out and not (tmp_path / "any_step_video.md").exists()
    assert main([*chosen, "--report-only"]) == 0
    assert "Not finished" in (tmp_path / "any_step_video.md").read_text()


@pytest.mark.parametrize("wrong", [["--smoke"], ["--budget", "huge"], ["--samples", "1"], ["--methods", "rcn"]])
def test_what_is_wrong_is_said_before_anything_is_done(wrong, capsys):
    with pytest.raises(SystemExit):
        main(wrong)
    assert "error" in capsys.readouterr().err


# ---------------------------------------------------------------------------- what it counts


def test_a_method_is_given_the_iterations_that_cost_the_budget(tmp_path):
    settings = evolve(TINY, budget=100_000, batch=32)
    plans = {e.name: any_step_video.plan(e, settings, tmp_path) for e in TINY.entries}
    assert plans["consistency"].iterations == (round(100_000 / 32 / 2),)  # 1 G and 1 F
    assert plans["consistency"].cost["teacher"].total == plans["consistency"].cost["student"].total
    assert plans["anyflow"].cost["student"].total == pytest.approx(100_000, rel=0.01)
    forward, on_policy = plans["anyflow"].iterations
    assert forward / on_policy == pytest.approx(1800 / 300, rel=0.02)


def test_a_shorter_stage_warms_up_and_averages_for_shorter():
    entry = NAMES["anyflow"]
    whole, half = (video_jobs.recipe(entry, TINY, scale, factor) for scale, factor in ((1.0, 1.0), (0.5, 3.0)))
    for a, b in zip(whole.stages, half.stages, strict=True):
        assert b.steps == a.steps / 2 and b.ema.start == a.ema.start / 2
        assert 1 - b.ema.decay == pytest.approx(2 * (1 - a.ema.decay))
        for role in a.method.trains:
            assert b.optimizer_of(role).lr == pytest.approx(3 * a.optimizer_of(role).lr)
            assert b.optimizer_of(role).warmup == a.optimizer_of(role).warmup / 2


def test_calls_count_frames_and_tangents():
    u = Toy(causal=True).build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    meter, batch = Meter(u, FRAMES), data(4).batch([0, 1])
    z, t = batch.x, torch.full((2,), 0.5)
    chunk = z[:, :CHUNK]
    with torch.no_grad():
        meter(chunk, t, t, batch.cond)
        cache = meter.extend(None, chunk, batch.cond)
    assert meter.calls == Calls(plain=2 * 2 * CHUNK / FRAMES)
    meter(z[:, CHUNK : 2 * CHUNK], t, t, batch.cond, cache)
    assert meter.calls.graph == 2 * CHUNK / FRAMES
    assert Calls(1, 2, 3) + Calls(1, 0, 0) * 2 == Calls(3, 2, 3) and Calls(1, 2, 3).total == 6


# ---------------------------------------------------------------------------- what it reads


def synthetic(method, sampler, by_seed, metric="frechet_distance"):
    values = {
        seed: [
            {"method": method, "sampler": sampler, "steps": n, "metric": metric, "value": value}
            for n, value in zip((4, 8, 16, 32), curve, strict=True)
        ]
        for seed, curve in by_seed.items()
    }
    return [{"method": method, "seed": seed, "factor": 1.0, "code": "", "values": v} for seed, v in values.items()]


def summed(finals, names, metric="frechet_distance"):
    lines = tuple(Line(name, name) for name in names)
    results = Results({"seeds": [0, 1, 2], "steps": [4, 8, 16, 32]}, lines, {}, {}, [], finals)
    found = any_step_video_report.summarise(results)
    return found, {s["method"]: s for s in found["slopes"] if s["metric"] == metric}


def test_a_slope_is_a_share_of_the_value_at_four_steps_and_below_zero_where_it_improves():
    down = synthetic("anyflow", "flow_map", {s: [8, 6, 4, 2] for s in range(3)})
    up = synthetic("rcm", "consistency", {s: [4, 5 + s, 6 + 2 * s, 7 + 3 * s] for s in range(3)})
    found, slopes = summed([*down, *up], ("anyflow", "rcm"))
    assert slopes["anyflow"]["slope"] == pytest.approx(-0.25) and slopes["anyflow"]["std"] == pytest.approx(0)
    assert slopes["anyflow"]["reading"] == "improves" and slopes["anyflow"]["primary"]
    assert slopes["rcm"]["slope"] == pytest.approx(0.5) and slopes["rcm"]["std"] == pytest.approx(0.25)
    assert slopes["rcm"]["reading"] == "flat"  # not beyond twice its spread
    last = next(c for c in found["comparisons"] if c["steps"] == 32)
    assert (last["other"], last["mean"], last["reading"]) == ("rcm", -8.0, "better")


def test_a_share_that_rises_improves():
    rising = synthetic("anyflow", "flow_map", {0: [0.4, 0.5, 0.6, 0.7], 1: [0.4, 0.5, 0.6, 0.7]}, "label_accuracy")
    _, slopes = summed(rising, ("anyflow",), "label_accuracy")
    assert slopes["anyflow"]["slope"] == pytest.approx(-0.25) and not slopes["anyflow"]["primary"]


@pytest.mark.parametrize(
    "mean, std, told",
    [(-0.3, 0.1, "improves"), (0.3, 0.1, "gets worse"), (0.2, 0.1, "flat"), (-0.1, 0.1, "flat"), (1.0, None, None)],
)
def test_a_reading_is_beyond_twice_the_spread(mean, std, told):
    assert reading(mean, std) == (told or "one seed says nothing")
