"""The options of `flowmap distill` that say what is shown while it trains."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from .command import positive
from .errors import UsageError

if TYPE_CHECKING:
    from ..evaluation import Previews

NEVER = 0


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--previews",
        type=_often,
        metavar="N|never",
        help="samples of teacher and student every N iterations; by default eight times a stage and at its end",
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="of the previews, one a line; by default the evaluation's, or the data's own"
    )
    parser.add_argument(
        "--stop-on-alarm",
        type=positive,
        default=0,
        metavar="N",
        help="end the run where N previews in a row raise the same alarm, such as over-saturated samples",
    )


def asked(options: Namespace) -> Previews | None:
    """None for never."""
    if options.previews == NEVER:
        if options.prompts or options.stop_on_alarm:
            given = "--prompts" if options.prompts else "--stop-on-alarm"
            raise UsageError(f"{given} is of previews, and --previews never leaves them out")
        return None
    if options.prompts and not Path(options.prompts).is_file():
        raise UsageError(f"prompts {options.prompts!r}: there is no such file")
    from ..data.synth import read_prompts
    from ..evaluation import Alarms, Previews

    prompts = read_prompts(Path(options.prompts)) if options.prompts else ()
    return Previews(prompts, every=options.previews, alarms=Alarms(stop=options.stop_on_alarm))


def _often(text: str) -> int:
    if text == "never":
        return NEVER
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or never") from None
