"""Whether a run in a directory goes on: with its recipe alone, and what differs where that is another.

`recipe.digest` says which values count, `training.store.checkpoint` refuses a checkpoint of other ones. One field may
change: `steps` may grow, of the stage that has begun last and of later ones. What was trained so far is what a longer
run would have had by then, but for a learning rate that falls over the steps of its stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from .recipe import AdamW, Recipe, describe, digest
from .training.loop import rate
from .training.store import checkpoint
from .training.store.steps import KEY, Steps, recorded

LATER = ("digest", "evaluation", "name", "save_dtype", "settings", KEY)
"""Of `recipe.json`: what may change, as `digest` has it."""
SHOWN, LONGEST = 6, 60


def newest(recipe: Recipe, run: Path) -> tuple[checkpoint.Found | None, Steps]:
    """The checkpoint that the run goes on from, and the stages' steps that it was made with.

    An `OtherRecipeError` that names what differs, with both values, but for steps that have grown.
    """
    now = steps(recipe)
    earlier = [one for one in recorded(run) if len(one) == len(now) and one != now]
    known = {digest(_of(recipe, one)): one for one in (*earlier, now)}
    try:
        found = checkpoint.latest(run / "checkpoints", *known)
    except checkpoint.OtherRecipeError as error:
        differ = [*differences(recipe, run)]
        if not differ:
            raise
        more = f"; and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        raise checkpoint.OtherRecipeError(f"{error}. What differs: {'; '.join(differ[:SHOWN])}{more}") from None
    before = now if found is None else known[found.digest]
    wrong = [] if found is None else [*_not_grown(found, before, now)]
    if wrong:
        raise checkpoint.OtherRecipeError(
            f"{found and found.path} is of a recipe with other steps: {'; '.join(wrong)}: give another directory, or "
            "start anew in it (--restart)"
        )
    return found, before


def ended(recipe: Recipe, found: checkpoint.Found) -> bool:
    """Whether the last stage is at its end."""
    last = len(recipe.stages) - 1
    return (found.stage, found.iteration) == (last, recipe.stages[last].steps)


def steps(recipe: Recipe) -> Steps:
    return tuple(stage.steps for stage in recipe.stages)


def _of(recipe: Recipe, each: Steps) -> Recipe:
    stages = (attrs.evolve(stage, steps=n) for stage, n in zip(recipe.stages, each, strict=True))
    return attrs.evolve(recipe, stages=tuple(stages))


def _not_grown(found: checkpoint.Found, before: Steps, now: Steps) -> Iterator[str]:
    for number, (was, n) in enumerate(zip(before, now, strict=True)):
        if n < was:
            yield f"stages.{number}.steps was {was}, is {n}, and may only grow"
        elif n > was and number < found.stage:
            yield f"stages.{number}.steps was {was}, is {n}, but stage {found.stage} has begun with what it ended with"


def grown(recipe: Recipe, found: checkpoint.Found, before: Steps) -> Iterator[str]:
    """What it means that steps have grown, in sentences."""
    for number, (stage, was) in enumerate(zip(recipe.stages, before, strict=True)):
        if stage.steps == was:
            continue
        yield f"stages.{number}.steps was {was}, is {stage.steps}"
        if number > found.stage or not found.iteration:
            continue
        for role in sorted(stage.method.trains):
            settings = stage.optimizer_of(role)
            if isinstance(settings, AdamW) and settings.schedule == "cosine":
                last = rate(settings, found.iteration - 1, was)
                then = rate(settings, found.iteration, stage.steps)
                yield (
                    f"the {role}'s learning rate falls along a cosine over {stage.steps} steps now: {last:.3g} was its "
                    f"last, {then:.3g} is its next; a run of {stage.steps} from the start would have had another"
                )


def differences(recipe: Recipe, run: Path) -> Iterator[str]:
    """`stages.0.steps was 4, is 5`, for every field of which the run was told another value."""
    try:
        before = json.loads((run / "recipe.json").read_text())
    except (OSError, ValueError):
        return
    now = json.loads(json.dumps(describe(recipe)))
    for key in sorted({*before, *now} - {*LATER}):
        yield from _between(key, before.get(key), now.get(key))


def _between(at: str, before: Any, now: Any) -> Iterator[str]:
    if before == now:
        return
    same = isinstance(before, dict) and isinstance(now, dict) and before.get("type") == now.get("type")
    if same:
        for key in sorted({*before, *now}):
            yield from _between(f"{at}.{key}", before.get(key), now.get(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now, strict=True)):
            yield from _between(f"{at}.{i}", *pair)
    else:
        yield f"{at} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    """A value in a sentence: of a component its type, of what is long its beginning."""
    if isinstance(value, dict) and "type" in value:
        return str(value["type"]).rpartition(".")[2]
    if isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
        return f"{len(value)} of them"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
