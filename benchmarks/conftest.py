"""One thread, so that a time is a time on any number of cores; the recipe's tiny Wan network with random weights."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from flowmap_wan21 import Wan21

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_wan() -> Wan21:
    """The backbone of recipes/tiny_wan_teacher.py: 1.2 M parameters, full rank."""
    return runpy.run_path(str(ROOT / "recipes" / "tiny_wan_teacher.py"))["RECIPE"].backbone
