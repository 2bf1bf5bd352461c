"""One thread: the networks here are so small that threads cost more than they save."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start, too

import pytest
import torch
from hypothesis import settings

from tests.pictures import few_and_small

torch.set_num_threads(1)
torch.set_warn_always(True)  # a warning given once a process fails whichever test comes first

pytest_plugins = ["pytester"]

# Loaded machines are slow machines: no test fails for the time one example took.
settings.register_profile("flowmap", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("flowmap")


@pytest.fixture(autouse=True, scope="session")
def _few_and_small_pictures() -> Iterator[None]:
    with few_and_small():
        yield


@pytest.fixture
def pictures_as_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowmap.evaluation.previews.LEAST", 384)
