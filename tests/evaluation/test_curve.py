"""The evaluation of an exact flow map finds nothing wrong with it, and says what was done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from attrs import evolve

from flowmap import Rng
from flowmap.evaluation import Metric, QualityCurve, Samples, records
from flowmap.evaluation.curve import KEY
from flowmap.evaluation.records import Record
from flowmap.objectives import Networks
from flowmap.testing import CountingFlowMap
from tests.evaluation.exact import GUIDANCE, SHAPE, Exact, brightness, curve

CPU = torch.device("cpu")


@pytest.fixture
def pictures() -> None:
    """Asked for by a test that wants them."""


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than measuring."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("flowmap.evaluation.plots.curves", lambda *unused: None)
        monkeypatch.setattr("flowmap.evaluation.previews.write", lambda *unused: None)
        monkeypatch.setattr("flowmap.evaluation.album.write", lambda *unused: None)


def networks() -> Networks:
    return Exact().build(frozenset({"student", "teacher"}), device=CPU, dtype=torch.float32)


def run(curve: QualityCurve, out: Path, nets: Networks | None = None) -> list[Record]:
    curve(nets or networks(), Exact(), out)
    return [Record(**one) for one in json.loads((out / "evaluation" / "nfe.json").read_text())]


def means(found: list[Record], sampler: str, metric: str) -> dict[int, float]:
    return {r.steps: r.mean for r in found if (r.sampler, r.metric) == (sampler, metric)}


def test_the_exact_map_ends_where_the_fine_ode_does_whatever_the_steps(tmp_path: Path) -> None:
    error = means(run(curve(reference=512), tmp_path), "flow_map", "endpoint_error")
    assert [*error] == [1, 2, 4]
    assert max(error.values()) < 0.02
    assert max(error.values()) - min(error.values()) < 1e-5


def test_the_teacher_comes_closer_with_steps_and_noising_again_leaves_its_path(tmp_path: Path) -> None:
    found = run(curve(steps=(1, 4, 16), reference=256), tmp_path)
    teacher, noised = means(found, "euler", "endpoint_error"), means(found, "consistency", "endpoint_error")
    assert teacher[1] > 2 * teacher[4] > 4 * teacher[16]
    assert noised[1] < 0.05 < 0.1 < min(noised[4], noised[16])


def test_the_reference_is_a_point_of_the_teacher_without_a_paired_error(tmp_path: Path) -> None:
    found = run(curve(), tmp_path)
    assert [*means(found, "euler", "brightness")] == [1, 2, 4, 64]
    assert [*means(found, "euler", "endpoint_error")] == [1, 2, 4]


def test_records_count_the_calls_that_were_made(tmp_path: Path) -> None:
    """Guidance is two calls a step of the teacher; the student has it built in."""
    plain = curve(seeds=(0,), samples=2)
    nets = {role: CountingFlowMap(u) for role, u in networks().items()}
    found = run(plain, tmp_path, nets)
    calls = {
        model: sum(r.calls for r in found if (r.model, r.metric) == (model, "brightness"))
        for model in ("teacher", "student")
    }
    assert {model: nets[model].plain for model in calls} == {model: 2 * n for model, n in calls.items()}
    assert nets["student"].graph == nets["teacher"].graph == 0
    assert {(r.calls // r.steps) for r in run(evolve(plain, guidance=1.0), tmp_path)} == {1}


def test_every_sampler_starts_from_the_same_noise_and_seeds_differ(tmp_path: Path) -> None:
    """With one step of an exact map, samples are a function of the noise: their paired error is that of one step."""
    starts: dict[str, list[torch.Tensor]] = {}

    def watch(samples: Samples) -> float:
        starts.setdefault("latents", []).append(samples.latents)
        return 0.0

    watched = QualityCurve(("a",), (Metric("seen", "lower", watch),), SHAPE, steps=(1,), reference=2, samples=2)
    run(watched, tmp_path)
    reference, teacher, jump, noised = starts["latents"][:4]
    assert torch.equal(jump, noised)  # one step of either is one jump
    assert not torch.equal(reference, teacher)
    assert not torch.equal(jump, starts["latents"][6])  # the next seed
    noise = Rng.seeded(KEY, 0).noise_like(torch.zeros(2, *SHAPE))
    expected = networks()["student"].jump(noise, torch.ones(2), torch.zeros(2), {"label": torch.ones(2)})
    torch.testing.assert_close(jump, expected)


def test_the_batch_size_changes_nothing(tmp_path: Path) -> None:
    whole, parts = run(curve(samples=4), tmp_path), run(curve(samples=4, batch=3), tmp_path)
    assert "consistency" in {record.sampler for record in whole}
    for a, b in zip(whole, parts, strict=True):
        assert a.mean == pytest.approx(b.mean, rel=1e-5)


def test_a_record_has_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    singles = [means(run(curve(seeds=(seed,)), tmp_path), "flow_map", "brightness")[2] for seed in (0, 1, 2)]
    (both,) = [r for r in run(curve(), tmp_path) if (r.sampler, r.metric, r.steps) == ("flow_map", "brightness", 2)]
    tensor = torch.tensor(singles, dtype=torch.float64)
    assert (both.mean, both.std) == (pytest.approx(float(tensor.mean())), pytest.approx(float(tensor.std())))
    assert (both.model, both.calls, both.seeds, both.better) == ("student", 2, 3, "higher")


@pytest.mark.usefixtures("pictures")
def test_everything_is_written(tmp_path: Path) -> None:
    plain = evolve(curve(), real=lambda prompts, seed: torch.full((len(prompts), *SHAPE), 0.25))
    found = run(plain, tmp_path)
    table = (tmp_path / "evaluation" / "table.txt").read_text()
    assert "3 seeds × 3 samples, 2 prompts" in table and "SO FEW SAMPLES MEAN NOTHING" in table
    assert "NOTHING" not in curve(samples=32).title
    assert "brightness (higher is better)" in table and "real videos" in table and "0.25 ±0.00" in table
    lines = (tmp_path / "evaluation" / "nfe.csv").read_text().splitlines()
    assert lines[0] == "model,sampler,steps,calls,metric,mean,std,seeds,better"
    assert len(lines) == 1 + len(found)
    manifest = json.loads((tmp_path / "evaluation" / "manifest.json").read_text())
    assert manifest["real"] == {"brightness": {"mean": 0.25, "std": 0.0}}
    assert manifest["shape"] == {"latent": [*SHAPE], "video": [*SHAPE]}
    assert manifest["grid"] == {"shift": 2.0}
    assert (tmp_path / "plots" / "nfe.png").stat().st_size > 10_000
    names = {path.name for path in (tmp_path / "samples").iterdir() if path.suffix != ".webp"}
    album = json.loads((tmp_path / "samples" / "album.json").read_text())
    assert [(one["model"], one["steps"]) for one in album["clips"]] == [
        *(("teacher", n) for n in (64, 1, 2, 4)),
        *(("student", n) for n in (1, 2, 4)),
        *(("student, re-noised", n) for n in (1, 2, 4)),
    ]
    assert all((tmp_path / "samples" / file).is_file() for one in album["clips"] for file in one["files"])
    assert names == {
        "album.json",
        "grid.png",
        *(f"teacher_{n:02d}_steps.mp4" for n in (1, 2, 4, 64)),
        *(f"student_{n:02d}_steps.mp4" for n in (1, 2, 4)),
    }


def test_an_evaluation_knows_whether_it_is_there(tmp_path: Path) -> None:
    assert not curve().written(tmp_path)
    run(curve(), tmp_path)
    assert curve().written(tmp_path)
    assert not curve(samples=4).written(tmp_path)
    (tmp_path / "evaluation" / "manifest.json").write_text("{")
    assert not curve().written(tmp_path)


def test_a_quick_one_has_the_same_points() -> None:
    full = curve(samples=32, seeds=range(5))
    assert full.quick().points() == full.points()
    assert (full.quick().samples, full.quick().seeds) == (4, (0, 1))


def test_without_the_consistency_sampler(tmp_path: Path) -> None:
    assert {r.sampler for r in run(curve(consistency=False), tmp_path)} == {"euler", "flow_map"}


def test_a_frozen_student_is_sampled_as_a_flow_map_with_one_call_a_step(tmp_path: Path) -> None:
    """The exact map of the unguided field: it ends in its own reference whatever the steps, and takes no guidance."""
    tuned = curve(teacher_sampler="flow_map", seeds=(0,), samples=2)
    nets = {role: CountingFlowMap(u) for role, u in networks().items()}
    found = run(tuned, tmp_path, nets)
    before = [r for r in found if r.model == "teacher"]
    assert {(r.sampler, r.calls) for r in before} == {("flow_map", n) for n in (1, 2, 4, 64)}
    assert nets["teacher"].plain == 2 * sum(r.calls for r in before if r.metric == "brightness")
    errors = {r.steps: r.mean for r in found if r.model == "teacher" and r.metric == "endpoint_error"}
    assert [*errors] == [1, 2, 4] and max(errors.values()) < 1e-5
    after = [r.mean for r in found if r.key == ("student", "flow_map") and r.metric == "endpoint_error"]
    assert min(after) > 0.1  # the guided map ends elsewhere
    manifest = json.loads((tmp_path / "evaluation" / "manifest.json").read_text())
    assert manifest["teacher"] == {"sampler": "flow_map", "guidance": 1.0, "reference_steps": 64}


@pytest.mark.usefixtures("pictures")
def test_before_and_after_are_called_so_everywhere(tmp_path: Path) -> None:
    found = run(curve(teacher_sampler="flow_map", consistency=False, seeds=(0,)), tmp_path)
    table = (tmp_path / "evaluation" / "table.txt").read_text()
    assert "before: the student that was fine-tuned" in table.splitlines()[0]
    assert "  before, 1 call a step" in table and "  after, 1 call a step" in table
    assert "  teacher" not in table and "  student" not in table
    assert "| brightness | before | " in records.markdown(found)
    assert "| brightness | after | " in records.markdown(found)
    names = {path.stem for path in (tmp_path / "samples").glob("*.mp4")}
    assert names == {*(f"before_{n:02d}_steps" for n in (1, 2, 4, 64)), *(f"after_{n:02d}_steps" for n in (1, 2, 4))}
    assert (tmp_path / "plots" / "nfe.png").stat().st_size > 10_000


def test_lines_have_names_that_tell_them_apart() -> None:
    plain, tuned = curve(), curve(teacher_sampler="flow_map")
    assert records.labels(plain.points()) == {
        ("teacher", "euler"): "teacher",
        ("student", "flow_map"): "student",
        ("student", "consistency"): "student, re-noised",
    }
    assert [*records.labels(tuned.points()).values()] == ["before", "after", "after, re-noised"]


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("teacher_sampler", "consistency", r".teacher_sampler = .*: must be '"),
        ("steps", (), r"steps = \(\): must increase from at least 1"),
        ("steps", (0, 1), r"steps = \(0, 1\)"),
        ("steps", (4, 2), r"steps = \(4, 2\): must increase"),
        ("samples", 1, r".samples = .*: must be .*>= 2"),
        ("guidance", 0.5, r".guidance = .*: must be .*>= 1"),
        ("seeds", (), r".seeds = .*: must have at least 1"),
        ("reference", 0, r".reference = .*: must be .*>= 1"),
    ],
)
def test_settings_are_checked_when_the_value_is_made(field: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        curve(**{field: value})


def test_two_metrics_have_two_names() -> None:
    with pytest.raises(ValueError, match="their names must differ"):
        QualityCurve(("a",), (Metric("x", "lower", brightness), Metric("x", "higher", brightness)), SHAPE)


def test_guidance_is_what_the_student_was_made_for(tmp_path: Path) -> None:
    """Another guidance of the teacher is another ODE: the exact student of GUIDANCE is not its flow map."""
    right = means(run(curve(), tmp_path), "flow_map", "endpoint_error")[1]
    wrong = means(run(curve(guidance=GUIDANCE + 2), tmp_path), "flow_map", "endpoint_error")[1]
    assert wrong > 5 * right


def test_the_markdown_table_has_a_row_a_sampler_and_metric() -> None:
    row = Record("student", "flow_map", 2, 2, "speed_error", 0.25, 0.125, 3, "lower")
    other = evolve(row, steps=4, calls=4, mean=12.345)
    assert records.markdown([row, other]).splitlines() == [
        "| metric | sampler | 2 | 4 |",
        "| --- | --- | --- | --- |",
        "| speed error | student | 0.25 ±0.12 | 12.3 ±0.1 |",
    ]
