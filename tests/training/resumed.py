"""A run that is stopped between two steps and called again, for tests of what must be saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowmap import Recipe, distill
from flowmap.training import loop


def assert_goes_on(recipe: Callable[[int], Recipe], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five steps, of which the fourth is the last before it is stopped: the weights of a run that is not, bit for
    bit."""
    whole, inner = distill(recipe(5), device="cpu").trained(), loop.reach
    left = iter(range(100))

    def stop(at: str) -> None:
        if at == "student.after" and next(left) == 3:
            raise RuntimeError("stop")

    monkeypatch.setattr(loop, "reach", stop)
    with pytest.raises(RuntimeError, match="stop"):
        distill(recipe(5), out=out, device="cpu", save_minutes=0.0)
    monkeypatch.setattr(loop, "reach", inner)
    again = distill(recipe(5), out=out, device="cpu").trained()
    assert all(torch.equal(p, again[name]) for name, p in whole.items())
