"""A command of the command line as a value, and the types of arguments that several commands take.

A new command is a file beside this one that holds a `COMMAND`, and one entry in `COMMANDS` of `flowmap.cli`.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from attrs import frozen

BACKBONE = (
    "of a student of your own network, which its directory has not: package.module:NAME or file.py:NAME, of the "
    "network, its spec or what makes it"
)


@frozen
class Command:
    """text: what it does, as a clause in lower case. arguments: adds its own to a parser. run: may give an exit code.

    `run` finds in `options.console` whether the program was started from a shell.
    """

    name: str
    text: str
    example: str
    run: Callable[[Namespace], int | None]
    arguments: Callable[[ArgumentParser], object] = lambda parser: None


def _checked(convert: Callable[[str], int], good: Callable[[int], bool], allowed: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: must be {allowed}") from None
        if not good(value):
            raise argparse.ArgumentTypeError(f"{text}: must be {allowed}")
        return value

    return read


positive = _checked(int, lambda n: n >= 1, "a whole number, at least 1")
whole = _checked(int, lambda n: n >= 0, "a whole number, at least 0")
