"""What each command does."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

from . import recipes
from .errors import UsageError
from .threads import wait_passively


def version() -> str:
    from importlib import metadata

    return f"flowmap {metadata.version('flowmap-distill')}"


def distill(options: Namespace) -> None:
    name, method = recipes.split(options.recipe)
    if (method := options.method or method) is not None:
        name = f"{name}:{method}"
    recipes.find(name)
    wait_passively(options.console)
    recipe = recipes.load(name).capped(options.steps)
    from ..distill import distill as run

    stem = Path(recipes.split(name)[0]).stem
    out = Path(options.out or Path("runs") / (stem if method is None else f"{stem}_{method}"))
    run(recipe, out=out, resume=options.resume)
    report(out)


def report(out: Path) -> None:
    """The table, and the paths of what was written."""
    table = out / "evaluation" / "table.txt"
    if table.is_file():
        print(f"\n{table.read_text()}")
    written = {
        "the student, a pipeline that diffusers loads": "student",
        "the teacher": "teacher",
        "its model card": "student/README.md",
        "quality against steps, drawn": "plots/nfe.png",
        "quality against steps, as numbers": "evaluation/nfe.json",
        "samples, side by side": "samples/grid.png",
        "samples, as videos": "samples",
        "what was asked, where it ran, how it went": "status.json",
    }
    for what, name in written.items():
        if (out / name).exists():
            print(f"{what:42}  {out / name}")


def sample(options: Namespace) -> None:
    path = Path(options.student)
    if not path.is_dir():
        raise UsageError(f"student {options.student!r}: there is no such directory; `flowmap distill` makes one")
    if options.context is not None and not Path(options.context).is_file():
        raise UsageError(f"context {options.context!r}: there is no such file")
    wait_passively(options.console)
    from ..data.videos import frames_of
    from ..evaluation.sampling import grid_of_samples
    from ..plugins import backbone

    context = None if options.context is None else frames_of(Path(options.context))
    asked = options.prompt, options.steps, options.seed, options.size, options.out
    try:
        grid_of_samples(backbone(str(path)), path, *asked, context)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(options.out)


def curve(options: Namespace) -> None:
    run = Path(options.run)
    name = options.recipe or _recipe_of(run)
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
    evaluate(recipe, run, out=options.out)
    report(Path(options.out or run))


def _recipe_of(run: Path) -> str:
    try:
        name = json.loads((run / "recipe.json").read_text()).get("name")
    except (OSError, ValueError):
        raise UsageError(f"run {str(run)!r}: there is no recipe.json in it, so it is no run directory") from None
    if not name:
        raise UsageError(f"run {str(run)!r}: its recipe has no name: say --recipe NAME or --recipe FILE.py")
    return str(name)


def plugins(options: Namespace) -> None:
    from ..plugins import installed, origins

    for hook in ("backbones", "methods", "exporters"):
        found = origins(installed(), f"flowmap_{hook}")
        width = max(map(len, found), default=0)
        print(hook)
        for name, plugin in found.items():
            print(f"  {name:{width}}  from {plugin}")
        if not found:
            print("  none")


def check(options: Namespace) -> int:
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # casting tiny networks, the checks do what it warns of
    from ..plugins import backbone
    from ..testing import check_backbone

    found = check_backbone(backbone(options.backbone))
    width = max(len(name) for name, _, _ in found)
    for name, outcome, message in found:
        print(f"{outcome:7}  {name:{width}}  {message}".rstrip())
    outcomes = [outcome for _, outcome, _ in found]
    print(", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes)))
    return 1 if "failed" in outcomes else 0


def cite(options: Namespace) -> None:
    recipe = recipes.load(options.recipe)
    from ..evaluation.card import citations

    print("\n\n".join(citations(recipe)))


RUN: Mapping[str, Callable[[Namespace], int | None]] = {
    "distill": distill,
    "sample": sample,
    "curve": curve,
    "plugins": plugins,
    "check": check,
    "cite": cite,
}
