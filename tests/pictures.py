"""Previews that a test does not ask for are of fewer samples and steps than for users, and pictures are enlarged less:
both took nine tenths of a small run's time. Every run still has them, of every network."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attrs import evolve


@contextmanager
def few_and_small() -> Iterator[None]:
    import pytest

    from flowmap import distill
    from flowmap.cli import previewing
    from flowmap.evaluation import Previews, previews

    few: Any = {"count": 1, "steps": (1, 2), "reference": 4}
    asked = previewing.asked

    def fewer(options: Namespace) -> Previews | None:
        found = asked(options)
        return None if found is None else evolve(found, **few)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(distill.__kwdefaults__, "previews", Previews(**few))
        patch.setattr(previewing, "asked", fewer)
        patch.setattr(previews, "LEAST", 64)
        yield
