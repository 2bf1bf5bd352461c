"""flowmap curve: judge a finished run's student again, or one that others made."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ..mistaken import INDEX
from . import recipes
from .command import Command, positive
from .distill import default_out, report
from .errors import UsageError
from .settings import applied, replaced
from .threads import wait_passively

if TYPE_CHECKING:
    from ..recipe import Evaluator

BESIDE = "where to write; by default the run or, where that has another evaluation, RUN/curves beside it"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run directory, or a student's own (flowmap import)")
    parser.add_argument(
        "--steps", type=positive, nargs="+", metavar="N", help="of sampling; as in the recipe by default"
    )
    parser.add_argument("--recipe", metavar="RECIPE", help="whose evaluation; the run's own by default")
    parser.add_argument("--out", metavar="DIR", help=BESIDE)


def run(options: Namespace) -> None:
    path = Path(options.run)
    name, settings = (options.recipe, []) if options.recipe else _recipe_of(path)
    recipes.find(name)
    wait_passively(options.console)
    recipe = applied(recipes.load(name, replaced=replaced(settings)), settings)
    import attrs

    from ..distill import evaluate, judging
    from ..evaluation import QualityCurve

    if options.steps is not None:
        if not isinstance(recipe.evaluation, QualityCurve):
            raise UsageError(f"--steps {options.steps}: the recipe {recipe.name!r} has no QualityCurve to give them to")
        steps = tuple(sorted(set(options.steps)))
        recipe = attrs.evolve(recipe, evaluation=attrs.evolve(recipe.evaluation, steps=steps))
    recipe = judging(recipe, path)
    if recipe.evaluation is None:
        raise UsageError(f"the recipe {recipe.name!r} has no evaluation: give --recipe with one that has")
    out = Path(options.out) if options.out else place(recipe.evaluation, path, recipe.name, options.steps)
    evaluate(recipe, path, out=None if out == path else out)
    report(out)


def place(evaluation: Evaluator, run: Path, name: str, steps: Sequence[int] | None) -> Path:
    """Where an evaluation goes: the run, if it has no other, else a directory beside that one; it is never replaced."""
    if evaluation.written(run) or not (run / "evaluation").exists():
        return run
    called = "_".join([default_out(name, trial=False).name, *map(str, steps or ())])
    for number in count(1):
        out = run / "curves" / (called if number == 1 else f"{called}_{number}")
        if evaluation.written(out) or not out.exists():
            return out
    raise AssertionError


def _recipe_of(run: Path) -> tuple[str, list[str]]:
    """The name of a run's recipe, and what it was told to be beside what its file says."""
    file = run / "recipe.json"
    if not file.is_file() and ((run / INDEX).is_file() or (run / "flowmap.json").is_file()):
        raise UsageError(
            f"{run} is a student's directory and no run: say whose evaluation, such as --recipe quickstart"
        )
    try:
        said = json.loads(file.read_text())
        name, settings = said.get("name"), said.get("settings", [])
    except OSError:
        raise UsageError(f"run {str(run)!r}: there is no recipe.json in it, so it is no run directory") from None
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{file} is damaged ({error}): say --recipe NAME or --recipe FILE.py") from None
    if not name:
        raise UsageError(f"run {str(run)!r}: its recipe has no name: say --recipe NAME or --recipe FILE.py")
    return str(name), settings


COMMAND = Command(
    "curve", "judge a finished run's student again", "flowmap curve runs/quickstart --steps 1 2 4", run, arguments
)
