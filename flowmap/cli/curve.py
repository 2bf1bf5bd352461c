"""flowmap curve: judge a finished run's student again."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from . import recipes
from .command import Command, positive
from .distill import report
from .errors import UsageError
from .threads import wait_passively


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run directory")
    parser.add_argument("--steps", type=positive, nargs="+", metavar="N", help="as in the recipe by default")
    parser.add_argument("--recipe", metavar="RECIPE", help="whose evaluation; the run's own by default")
    parser.add_argument("--out", metavar="DIR", help="where to write; by default the run, whose evaluation it replaces")


def run(options: Namespace) -> None:
    path = Path(options.run)
    name = options.recipe or _recipe_of(path)
    recipes.find(name)
    wait_passively(options.console)
    recipe = recipes.load(name)
    import attrs

    from ..distill import evaluate
    from ..evaluation import QualityCurve

    if options.steps is not None:
        if not isinstance(recipe.evaluation, QualityCurve):
            raise UsageError(f"--steps {options.steps}: the recipe {recipe.name!r} has no QualityCurve to give them to")
        steps = tuple(sorted(set(options.steps)))
        recipe = attrs.evolve(recipe, evaluation=attrs.evolve(recipe.evaluation, steps=steps))
    evaluate(recipe, path, out=options.out)
    report(Path(options.out or path))


def _recipe_of(run: Path) -> str:
    try:
        name = json.loads((run / "recipe.json").read_text()).get("name")
    except (OSError, ValueError):
        raise UsageError(f"run {str(run)!r}: there is no recipe.json in it, so it is no run directory") from None
    if not name:
        raise UsageError(f"run {str(run)!r}: its recipe has no name: say --recipe NAME or --recipe FILE.py")
    return str(name)


COMMAND = Command(
    "curve", "judge a finished run's student again", "flowmap curve runs/quickstart --steps 1 2 4", run, arguments
)
