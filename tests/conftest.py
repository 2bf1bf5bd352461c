"""One thread: the networks here are so small that threads cost more than they save."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start, too

import pytest
import torch
from attrs import evolve
from hypothesis import settings

torch.set_num_threads(1)
torch.set_warn_always(True)  # a warning given once a process fails whichever test comes first

pytest_plugins = ["pytester"]

# Loaded machines are slow machines: no test fails for the time one example took.
settings.register_profile("flowmap", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("flowmap")


@pytest.fixture(autouse=True, scope="session")
def _few_and_small_pictures() -> Iterator[None]:
    """Previews that a test does not ask for are of fewer samples and steps than for users, and pictures are enlarged
    less: both took nine tenths of a small run's time. Every run still has them, of every network."""
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


@pytest.fixture
def pictures_as_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowmap.evaluation.previews.LEAST", 384)
