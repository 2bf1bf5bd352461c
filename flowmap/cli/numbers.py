"""Numbers of options: of a range, of parts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable


def _number(good: Callable[[float], bool], allowed: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: must be a number, {allowed}") from None
        if not good(value) or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: must be a number, {allowed}")
        return value

    return read


scale = _number(lambda value: value >= 1, "at least 1")
above_zero = _number(lambda value: value > 0, "above 0")


def part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: must be I/N with 1 <= I <= N, such as 1/4")
    return int(found[1]), int(found[2])
