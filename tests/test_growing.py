"""Steps that grow on a resume, and runs that start anew in a directory that was used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve, frozen

from flowmap import AdamW, Ema, Recipe, Stage, distill
from flowmap.cli import main
from flowmap.methods import anyflow
from flowmap.model import FlowMapSpec
from flowmap.objectives import Networks
from flowmap.plugins import manager
from flowmap.recipe import digest
from flowmap.resume import newest
from flowmap.training import loop
from flowmap.training.store import checkpoint, status
from flowmap.training.store.checkpoint import OtherRecipeError
from flowmap.training.store.lock import Lock, LockError
from tests import runs
from tests.toys import Toy, data

QUIET = manager(entry_points=False)
STAGE = Stage(anyflow.forward(), 2, batch=4, optimizer=AdamW(lr=1e-3, warmup=1), ema=Ema(0.5, start=1))
SECOND = evolve(STAGE, method=anyflow.on_policy(steps=(1, 2)), optimizer=AdamW(lr=1e-3))


def recipe(*steps: int, **settings: Any) -> Recipe:
    stages = [evolve(stage, steps=n, **settings) for stage, n in zip((STAGE, SECOND), steps, strict=False)]
    return Recipe(Toy(), tuple(stages), data=data())


def run(made: Recipe, out: Path, **options: Any) -> str:
    """The hash of what was trained."""
    distill(made, out=out, device="cpu", pm=QUIET, **options)
    return str(json.loads((out / "status.json").read_text())["hash"])


@pytest.mark.parametrize("before, now", [((2,), (5,)), ((2, 1), (2, 4))], ids=["one stage", "the last of two"])
def test_a_stage_that_grew_is_one_that_was_as_long_from_the_start(
    before: tuple[int, ...], now: tuple[int, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weights, averages, moments, the warm-up and all randomness go on: bit for bit."""
    whole = run(recipe(*now), tmp_path / "whole")
    first = run(recipe(*before), tmp_path / "grown")
    assert run(recipe(*now), tmp_path / "grown") == whole != first
    said = capfd.readouterr().err
    last = len(now) - 1
    assert f"stages.{last}.steps was {before[-1]}, is {now[-1]}\n" in said and "cosine" not in said


def test_a_planted_defect_a_stage_that_goes_on_from_its_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(recipe(5), tmp_path / "whole")
    run(recipe(2), tmp_path / "grown")
    right = checkpoint.restore_weights
    monkeypatch.setattr(checkpoint, "restore_weights", lambda found, weights: right(found, weights, averaged=True))
    assert run(recipe(5), tmp_path / "grown") != whole


def test_a_rate_that_falls_falls_over_the_new_steps_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It equals a run of the new length whose first steps had the old length's rates."""
    falling = {"optimizer": AdamW(lr=1e-2, schedule="cosine", floor=0.1)}
    old, new, right = 2, 6, loop.rate
    run(recipe(old, **falling), tmp_path / "grown")
    capfd.readouterr()
    found = run(recipe(new, **falling), tmp_path / "grown")
    settings = falling["optimizer"]
    last, then = right(settings, old - 1, old), right(settings, old, new)
    assert then > last
    assert (
        f"the student's learning rate falls along a cosine over {new} steps now: {last:.3g} was its last, {then:.3g} "
        f"is its next; a run of {new} from the start would have had another\n" in capfd.readouterr().err
    )
    straight = run(recipe(new, **falling), tmp_path / "straight")
    monkeypatch.setattr(loop, "rate", lambda a, i, n, lr=None: right(a, i, old if i < old else n, lr))
    assert run(recipe(new, **falling), tmp_path / "pieced") == found != straight


def test_a_run_grows_that_was_stopped_on_the_way_and_again_before_it_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint is of the old length until the first one of the new is there."""
    whole = run(recipe(6), tmp_path / "whole")
    run(recipe(2), tmp_path / "grown")

    def stops(*arguments: object, **named: object) -> None:
        raise RuntimeError("out of memory")

    for steps in (4, 6):
        with monkeypatch.context() as patch:
            patch.setattr("flowmap.training.stages.train", stops)
            with pytest.raises(RuntimeError, match="out of memory"):
                run(recipe(steps), tmp_path / "grown")
    assert json.loads((tmp_path / "grown" / "recipe.json").read_text())["steps_before"] == [[2], [4]]
    with pytest.raises(OtherRecipeError, match=r"stages\.0\.steps was 2, is 1, and may only grow"):
        run(recipe(1), tmp_path / "grown")
    assert run(recipe(6), tmp_path / "grown") == whole


def test_what_must_not_grow_or_shrink_is_named(tmp_path: Path) -> None:
    run(recipe(2, 1), tmp_path)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for steps, said in {
        (3, 1): "stages.0.steps was 2, is 3, but stage 1 has begun with what it ended with",
        (1, 1): "stages.0.steps was 2, is 1, and may only grow",
    }.items():
        with pytest.raises(OtherRecipeError, match=re.escape(said)):
            run(recipe(*steps), tmp_path)
    other = evolve(recipe(2, 4), seed=3)
    with pytest.raises(OtherRecipeError, match=r"What differs: seed was 0, is 3; stages\.1\.steps was 1, is 4$"):
        run(other, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
    found, before = newest(recipe(2, 4), tmp_path)
    assert found is not None and (found.stage, found.digest, before) == (1, digest(recipe(2, 1)), (2, 1))


@frozen
class Judge:
    """Writes what it judged."""

    def __call__(self, nets: Networks, backbone: FlowMapSpec, out: Path) -> None:
        (out / "evaluation").mkdir()
        weights = torch.cat([p.flatten() for p in nets["student"].parameters()])
        (out / "evaluation" / "sum.txt").write_text(f"{weights.double().sum().item()}")

    def written(self, out: Path) -> bool:
        return (out / "evaluation" / "sum.txt").is_file()

    def quick(self) -> Judge:
        return self


def test_a_student_that_grew_is_judged_anew_and_the_one_before_stays_judged(tmp_path: Path) -> None:
    def judged(out: Path) -> str:
        return (out / "evaluation" / "sum.txt").read_text()

    for steps in (2, 4):
        run(evolve(recipe(steps), evaluation=Judge()), tmp_path / "grown")
        run(evolve(recipe(steps), evaluation=Judge()), tmp_path / str(steps))
    assert judged(tmp_path / "grown") == judged(tmp_path / "4") != judged(tmp_path / "2")
    assert judged(tmp_path / "grown" / "curves" / "before_growing") == judged(tmp_path / "2")


def test_a_restart_keeps_what_was_there_aside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, other = tmp_path / "run", evolve(recipe(2), seed=5)
    first = run(recipe(2), out)
    second = run(other, out, resume="restart")
    assert f"flowmap: what was in {out} is in {out}.old-1 now\n" in capfd.readouterr().err
    assert run(recipe(2), out, resume="restart") == first != second
    assert [
        str(json.loads((tmp_path / n / "status.json").read_text())["hash"]) for n in ("run.old-1", "run.old-2")
    ] == [
        first,
        second,
    ]
    assert run(other, tmp_path / "new", resume="restart") == second and not (tmp_path / "new.old-1").exists()


def test_a_restart_that_is_refused_moves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(recipe(2), out)
    with pytest.raises(ValueError, match="no data"):
        run(evolve(recipe(2), data=None), out, resume="restart")
    with Lock(out), pytest.raises(LockError, match="another run works here"):
        run(recipe(2), out, resume="restart")
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and (out / "student").is_dir()


def test_what_goes_on_does_not_restart_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs.write(Path("mine.py"), steps=2)
    arguments = ["distill", "mine.py", "--restart", "--set", "stages.*.steps=1"]
    monkeypatch.setattr("sys.argv", ["flowmap", *arguments])
    assert main(arguments) == 0
    assert status.read(Path("runs/mine")).command == "flowmap distill mine.py --set 'stages.*.steps=1'"
    assert main([*arguments, "--resume", "never"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err
    assert [path.name for path in Path("runs").iterdir()] == ["mine"]
