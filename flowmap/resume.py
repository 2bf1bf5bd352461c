"""Whether a run in a directory goes on: with its recipe alone, and what differs where that is another.

`recipe.digest` says which values count, `training.store.checkpoint` refuses a checkpoint of other ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .recipe import Recipe, describe, digest
from .training.store import checkpoint

LATER = ("digest", "evaluation", "name", "save_dtype", "settings")
"""Of `recipe.json`: what may change, as `digest` has it."""
SHOWN, LONGEST = 6, 60


def newest(recipe: Recipe, run: Path) -> checkpoint.Found | None:
    """The checkpoint that the run goes on from; an `OtherRecipeError` that names what differs, with both values."""
    try:
        return checkpoint.latest(run / "checkpoints", digest(recipe))
    except checkpoint.OtherRecipeError as error:
        found = [*differences(recipe, run)]
        if not found:
            raise
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise checkpoint.OtherRecipeError(f"{error}. What differs: {'; '.join(found[:SHOWN])}{more}") from None


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
