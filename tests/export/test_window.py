"""An exported student with a window: what the network itself makes with one, in a cache whose shapes never change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from flowmap_far.network import FarFlowMap
from flowmap_far.runner import ExportedFar, Turned

from flowmap import Rng, Window
from flowmap._types import Cond, Latent
from flowmap.rollout import generate

from .students import runner, student, traced

KIND, CHUNKS = "causal fixed", 12
GRID = torch.tensor([1.0, 0.4, 0.0])


@pytest.fixture
def both() -> Iterator[tuple[FarFlowMap, ExportedFar, list[tuple[int, ...]]]]:
    """The network, its graphs in use, and the shapes of the histories that these are given."""
    u, seen = student(KIND)[0], list[tuple[int, ...]]()

    def watched(program: Any) -> Any:
        call = program.module()

        def run(*given: torch.Tensor) -> torch.Tensor:
            seen.extend(tuple(a.shape) for a in given if a.ndim == 6)
            out: torch.Tensor = call(*given)
            return out

        return run

    exported = runner(KIND, {name: watched(program) for name, (_, program) in traced(KIND).items()})
    assert isinstance(u, FarFlowMap) and isinstance(exported, ExportedFar)
    yield u, exported, seen
    u.window = None


def clip(u: FarFlowMap) -> tuple[list[Latent], Cond]:
    c = int(u.net.config.in_channels)
    noise = Rng.seeded(3).noise_like(torch.zeros(1, CHUNKS, c, 8, 8))
    return [part.clone() for part in noise.split(1, 1)], {"text": Rng.seeded(4).noise_like(torch.zeros(1, 16, 16))}


@pytest.mark.parametrize("window", [Window(1, 3), Window(1, 3, "contiguous"), Window(0, 3)], ids=str)
@torch.no_grad()
def test_it_makes_what_the_network_makes_in_a_cache_of_one_size(both: Any, window: Window) -> None:
    """Far beyond the length of training, and of the history that the graphs were made for."""
    u, exported, seen = both
    noise, c = clip(u)
    whole = [*generate(u, noise, c, GRID, None)]
    for net in (u, exported):
        net.bound(window)
    expected, found = ([*generate(net, noise, c, GRID, None)] for net in (u, exported))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=2e-5)
    assert len({*seen}) == 1  # nothing is built again, or allocated in another size
    assert float((expected[-1] - whole[-1]).abs().max()) > 1e-3  # it has forgotten


@torch.no_grad()
def test_a_key_that_is_not_turned_is_seen(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    u, exported, _ = both
    noise, c = clip(u)
    monkeypatch.setattr(Turned, "at", lambda self, first: self.memory)
    for net in (u, exported):
        net.bound(Window(1, 3))
    expected, found = ([*generate(net, noise, c, GRID, None)][-1] for net in (u, exported))
    assert float((expected - found).abs().max()) > 1e-3


def test_a_window_that_it_cannot_have_is_refused(both: Any) -> None:
    _, exported, _ = both
    with pytest.raises(ValueError, match=r"remembers \d+ tokens at least, this export has places for \d+"):
        exported.bound(Window(4, 4))
    with pytest.raises(ValueError, match=r"Window\.int8 = True"):
        exported.bound(Window(1, 3, int8=True))
    with pytest.raises(ValueError, match=r"Window.recent = 1: of its chunks 3 are at full resolution"):
        exported.bound(Window(1, 1))
    assert exported.window is None
