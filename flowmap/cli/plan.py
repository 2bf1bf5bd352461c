"""flowmap distill RECIPE --plan: what a recipe will take, without weights and without a GPU."""

from __future__ import annotations

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from . import recipes
from .command import positive
from .errors import UsageError
from .signs import lines

UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6, "TiB": 2**40, "TB": 10**12}
OPTIONS = ("gpus", "memory", "tflops", "utilisation")
SHARED = ("context", "float32")
"""Of a run too."""
UNREAD = ("compile", "attention")
"""Of a run alone."""


def arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("a plan")
    group.add_argument(
        "--plan",
        action="store_true",
        help="train nothing: print parameters, operations, memory and hours; no GPU needed",
    )
    group.add_argument("--gpus", type=positive, metavar="N", help="of the plan; 8 by default")
    group.add_argument("--memory", type=memory, metavar="SIZE", help="of each GPU, such as 80GiB, the default")
    group.add_argument(
        "--tflops", type=above_zero, metavar="X", help="a GPU's peak; 989 by default, an H100's bfloat16"
    )
    group.add_argument("--utilisation", type=share, metavar="X", help="of that peak, reached; 0.4 by default")


def run(options: Namespace) -> None:
    """Print the plan of `options.recipe`."""
    recipe = recipes.asked(options)
    from attrs import evolve

    from ..planning import Machine, advise, plan, text

    given = {key: value for key in (*OPTIONS, *SHARED) if (value := getattr(options, key)) is not None}
    with lines():
        found = plan(recipe, evolve(Machine(), **given))
    print(text(found, advise(found)))


def refuse_alone(options: Namespace) -> None:
    """Options of a plan without --plan would be silently of no effect."""
    if options.plan and (unread := [name for name in UNREAD if getattr(options, name)]):
        raise UsageError(f"--{unread[0]} changes no plan: leave it out")
    if not options.plan and (given := [name for name in OPTIONS if getattr(options, name) is not None]):
        raise UsageError(f"--{given[0]} belongs to a plan: say --plan too, or leave it out")


def memory(text: str) -> int:
    """Bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text)
    unit = None if found is None else next((u for u in UNITS if u.lower() == found[2].lower()), None)
    if found is None or unit is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number with a unit, {_or(list(UNITS))}, such as 80GiB")
    return int(float(found[1]) * UNITS[unit])


def above_zero(text: str) -> float:
    return _number(text, lambda x: x > 0, "a number above 0")


def share(text: str) -> float:
    return _number(text, lambda x: 0 < x <= 1, "a number above 0 and at most 1")


def _number(text: str, good: Callable[[float], bool], allowed: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be {allowed}") from None
    if not good(value):
        raise argparse.ArgumentTypeError(f"{text}: must be {allowed}")
    return value


def _or(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}"
