"""A number of steps for each chunk: [4, 2] takes four for the first and two for every one after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_consistency.self_forcing import self_forcing, step_list
from flowmap_consistency.self_gradient_forcing import self_gradient_forcing

from flowmap import Rng, Stage, sample
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.cli import main
from flowmap.methods import anyflow
from flowmap.model import Sampling
from flowmap.plugins import manager
from flowmap.rollout import ConsistencySimulation, FlowMapBackwardSimulation, consistency_step, walk
from flowmap.times import Grid, euler_grid, grids_of, of_chunk
from flowmap.training.loop import Trainer
from tests.chain import Chain, drawn
from tests.methods.test_costs import BATCH, ROLES
from tests.test_planted_defects import planted
from tests.test_stream import CHUNKED, Chunked, Plugin, saved, streamed
from tests.toys import Toy, data


class Seen(Chain):
    """Writes down the (t, r) of each chunk's calls, and whether they had a graph."""

    def __init__(self) -> None:
        super().__init__(keep=0.5)
        self.calls: list[list[tuple[float, float]]] = []
        self.graph: list[bool] = []
        self.at: tuple[object, ...] = ()

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        if not self.at or cache is not self.at[0]:
            self.calls.append([])
            self.at = (cache,)
        self.calls[-1].append((float(t[0]), float(r[0])))
        self.graph.append(torch.is_grad_enabled())
        return super().forward(z, t, r, cond, cache)


def numbers(u: Seen) -> list[int]:
    return [len(chunk) for chunk in u.calls]


# ------------------------------------------------------------------ sampling
@pytest.mark.parametrize("steps, wanted", [([4, 2], [4, 2, 2, 2]), ([1, 3, 2, 5], [1, 3, 2, 5]), ([2], [2, 2, 2, 2])])
def test_every_chunk_takes_its_own_steps_and_the_last_repeats(steps: list[int], wanted: list[int]) -> None:
    u = Seen()
    sample(u, drawn(2, 4), {}, steps, shift=3.0)
    assert numbers(u) == wanted
    for n, calls in zip(wanted, u.calls, strict=True):
        ends = euler_grid(n, 3.0).tolist()
        assert calls == [*pairwise(ends)]


@pytest.mark.parametrize("step", ["flow", "consistency"])
def test_alike_they_are_the_plain_form(step: str) -> None:
    u, noise = Chain(keep=0.5), drawn(3, 4)
    how: dict[str, Any] = {"step": consistency_step} if step == "consistency" else {}
    for steps in ([3], [3, 3], [3, 3, 3, 3]):
        assert torch.equal(sample(u, noise, {}, steps, shift=2.0, **how), sample(u, noise, {}, 3, shift=2.0, **how))


def test_of_the_exact_map_any_steps_are_the_video() -> None:
    """x¹ = ε¹, x^k = .8 x^{k-1} + .6 ε^k, whatever the numbers of steps; of another map they differ."""
    noise = drawn(64, 4)
    wanted = [noise[:, 0]]
    for k in (1, 2, 3):
        wanted.append(0.8 * wanted[-1] + 0.6 * noise[:, k])
    for steps in (1, [4, 2], [1, 5, 2]):
        found = sample(Chain(), noise, {}, steps)
        torch.testing.assert_close(found, torch.stack(wanted, 1), atol=1e-6, rtol=0)
    off = Chain()
    with torch.no_grad():
        off.scale.fill_(0.9)
    assert not torch.allclose(sample(off, noise, {}, [4, 2])[:, 1:], sample(off, noise, {}, 4)[:, 1:])
    assert torch.equal(sample(off, noise, {}, [4, 2])[:, 0], sample(off, noise, {}, 4)[:, 0])


def test_a_given_chunk_has_its_number_too() -> None:
    """Chunk k of the video, whether those before it were made or given: [4, 2] after an image takes 2 each."""
    u, noise = Seen(), drawn(2, 4)
    sample(u, noise, {}, [4, 3, 2], context=noise[:, :1])
    assert numbers(u) == [3, 2, 2]


def test_what_a_video_has_no_chunks_for_is_said() -> None:
    z, c = Toy().example(2)
    u = Toy().build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    with pytest.raises(ValueError, match="steps of 2 chunks, one by one: this video has one chunk, all frames at once"):
        sample(u, z, c, [4, 2])
    assert torch.equal(sample(u, z, c, [4]), sample(u, z, c, 4))
    with pytest.raises(ValueError, match="steps of 3 chunks, one by one: this video has 2 chunks: must be 1 to 2"):
        sample(Chain(), drawn(2, 2), {}, [4, 2, 2])
    with pytest.raises(ValueError, match=r"steps = \[\]: must be a number, or one a chunk, such as \[4, 2\]"):
        sample(Chain(), drawn(2, 2), {}, [])
    with pytest.raises(ValueError, match="steps = 0: must be at least 1"):
        sample(Chain(), drawn(2, 2), {}, [4, 0])


def test_a_student_of_fixed_levels_has_them_where_the_number_is_theirs() -> None:
    own = Sampling("consistency", 1.0, (1.0, 0.9, 0.4))
    grids = grids_of(own, [3, 2], 5.0)
    assert of_chunk(grids, 0).tolist() == pytest.approx([1.0, 0.9, 0.4, 0.0])
    assert torch.equal(of_chunk(grids, 7), euler_grid(2, 5.0))


# ------------------------------------------------------------------ streams, the command line
def test_a_stream_and_a_sample_take_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = saved(tmp_path / "student")
    frames = torch.cat([*streamed(student, steps=[3, 1])])
    assert Chunked.calls == [1, 1, 1, 2, 2]
    assert torch.equal(torch.cat([*streamed(student, steps=[2, 2, 2])]), torch.cat([*streamed(student, steps=2)]))
    assert not torch.equal(frames, torch.cat([*streamed(student, steps=3)]))
    with pytest.raises(ValueError, match="steps of 4 chunks, one by one: this video has 3 chunks"):
        streamed(student, steps=[3, 1, 1, 1])
    pm = manager(Plugin(CHUNKED), entry_points=False)
    monkeypatch.setattr("flowmap.plugins.installed", lambda: pm)
    arguments = ["sample", str(student), "--prompt", "a seven", "--out", str(tmp_path / "made.png"), "--steps"]
    Chunked.calls.clear()
    assert main([*arguments, "3,1", "2"]) == 0
    assert Chunked.calls == [1, 1, 1, 2, 2, 1, 1, 2, 2, 2, 2]


def test_a_wrong_number_is_said_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = saved(tmp_path / "student")
    for wrong in ("4,", "4,x", "0,2"):
        assert main(["sample", str(student), "--prompt", "a seven", "--steps", wrong]) == 2
        assert "argument --steps: " in capsys.readouterr().err


# ------------------------------------------------------------------ training
def corners(n: int, i: int) -> list[tuple[float, float]]:
    grid = euler_grid(n, 5.0).tolist()
    ends = sorted({1.0, grid[i], grid[i + 1], 0.0}, reverse=True)
    return [*pairwise(ends)]


def test_a_collapsed_walk_has_a_step_of_each_chunks_own_grid() -> None:
    """Every step of each as often, at the same part of the way, at most three jumps, all with a graph."""
    rollout, seen = FlowMapBackwardSimulation(((6, 3),)), Counter[tuple[int, int]]()
    for seed in range(200):
        u = Seen()
        rollout(u, drawn(1, 3), {}, Rng.seeded(seed))
        first = next(i for i in range(6) if u.calls[0] == corners(6, i))
        later = next(i for i in range(3) if u.calls[1] == corners(3, i))
        assert u.calls[2] == u.calls[1] and all(u.graph)
        seen[first, later] += 1
    assert {*seen} == {(i, i // 2) for i in range(6)} and min(seen.values()) > 15


@pytest.mark.parametrize("kind", [FlowMapBackwardSimulation, ConsistencySimulation])
def test_rollouts_of_chunks_alike_are_the_plain_ones(kind: Any) -> None:
    plain, own = ((4, 2), ((4, 4), (2, 2, 2))) if kind is FlowMapBackwardSimulation else (levels(3), (levels(3),) * 2)
    for seed in range(8):
        one, other = (kind(part)(Chain(), drawn(2, 4), {}, Rng.seeded(seed)) for part in (plain, own))
        assert torch.equal(one, other)


def levels(n: int) -> tuple[float, ...]:
    return step_list(n, 5.0)


def test_a_stopped_walk_cycles_so_that_every_step_is_the_last_once() -> None:
    """Of [4, 2]: (1, 1), (2, 2), (3, 2), (4, 2) steps, each as often; the last of each chunk alone has a graph."""
    rollout, seen = ConsistencySimulation((levels(4), levels(2))), Counter[tuple[int, ...]]()
    for seed in range(200):
        u = Seen()
        rollout(u, drawn(1, 3), {}, Rng.seeded(seed))
        n = numbers(u)
        seen[tuple(n)] += 1
        assert u.graph == [i == k - 1 for k in n for i in range(k)]
        asked = [t for chunk in u.calls for t, _ in chunk]
        wanted = [t for k, own in zip(n, (4, 2, 2), strict=True) for t in levels(own)[:k]]
        assert asked == pytest.approx(wanted)
    assert {*seen} == {(1, 1, 1), (2, 2, 2), (3, 2, 2), (4, 2, 2)} and min(seen.values()) > 30


@pytest.mark.parametrize(
    "method",
    [
        anyflow.on_policy(steps=((4, 2), 2)),
        anyflow.on_policy(steps=((4, 2), 2), replay=True),
        anyflow.on_policy(steps=((4, 2),), history_grad=True),
        self_forcing(number=(4, 2)),
        self_gradient_forcing(number=(4, 2)),
    ],
    ids=lambda m: m.name,
)
def test_it_trains(method: Any) -> None:
    spec = Toy(causal=True)
    nets = spec.build(ROLES, device=torch.device("cpu"), dtype=torch.float32)
    before = [p.detach().clone() for p in nets["student"].trained().values()]
    loop = Trainer(nets, Stage(method, 2, batch=BATCH), data(16, spec))
    loop.step(0)
    assert any(not torch.equal(a, b) for a, b in zip(before, nets["student"].trained().values(), strict=True))


def test_a_replay_is_the_same_gradient() -> None:
    found = []
    for replay in (False, True):
        u = Chain(keep=0.5)
        x = FlowMapBackwardSimulation(((4, 2),), replay=replay)(u, drawn(3, 4), {}, Rng.seeded(1))
        found.append(torch.autograd.grad((x**2).sum(), [u.read, u.std, u.first]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_what_training_cannot_do_is_said() -> None:
    for wrong in ((), ((),), (0,), ((4, 0),), ("4",)):
        with pytest.raises(ValueError, match=r"FlowMapBackwardSimulation\.steps = .*: must name at least one budget"):
            FlowMapBackwardSimulation(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"steps = \(\(4, 2\),\): must each be at least 2, one for each of two"):
        FlowMapBackwardSimulation(((4, 2),), within=(0.5, 1.0))
    with pytest.raises(ValueError, match=r"ConsistencySimulation\.times = .*: must decrease strictly from 1.0"):
        ConsistencySimulation(((1.0, 0.5), (0.5,)))
    for make in (
        lambda: FlowMapBackwardSimulation(((4, 2),), history_grad="packed"),
        lambda: ConsistencySimulation((levels(4), levels(2)), history_grad="packed"),
    ):
        with pytest.raises(ValueError, match="one call for all chunks is at one time: must be the same for all"):
            make()
    grids: Grid = [euler_grid(4), euler_grid(2)]
    with pytest.raises(ValueError, match="with a grid for each chunk: one call for all is at one time: must be True"):
        walk(Chain(), drawn(2, 4), {}, grids, Rng.seeded(0), history_grad="packed")
    assert FlowMapBackwardSimulation([[4, 2], 8]) == FlowMapBackwardSimulation(((4, 2), 8))  # type: ignore[arg-type]
    assert evolve(FlowMapBackwardSimulation((2,)), steps=((4, 2),)).steps == ((4, 2),)


# ------------------------------------------------------------------ planted
ROLLOUT, TIMES = "flowmap.rollout", "flowmap.times"


def collapsed() -> None:
    test_a_collapsed_walk_has_a_step_of_each_chunks_own_grid()


def stopped() -> None:
    test_a_stopped_walk_cycles_so_that_every_step_is_the_last_once()


LONGEST, SHORTEST = "max(map(len, self._each))", "min(map(len, self._each))"
OWN, FIRSTS = "steps = len(times) - 1", "steps = len(of_chunk(grid, 0)) - 1"
DEFECTS: Sequence[tuple[str, str, str, str, Any]] = [
    ("every chunk has the first one's", TIMES, "min(k, len(grid) - 1)", "0", lambda: sampled()),
    ("the last does not repeat, they go round", TIMES, "min(k, len(grid) - 1)", "k % len(grid)", lambda: sampled()),
    ("a given chunk does not count", ROLLOUT, "of_chunk(grid, k)", "of_chunk(grid, k - len(given))", lambda: given()),
    ("the same place in each grid", TIMES, "place * n // most", "min(place, n - 1)", collapsed),
    ("a chunk stops at the shortest one's last", ROLLOUT, LONGEST, SHORTEST, stopped),
    ("the graph is of the first walk's last", ROLLOUT, OWN, FIRSTS, stopped),
]


def sampled() -> None:
    test_every_chunk_takes_its_own_steps_and_the_last_repeats([4, 2], [4, 2, 2, 2])


def given() -> None:
    test_a_given_chunk_has_its_number_too()


@pytest.mark.parametrize("module, old, new, test", [pytest.param(*rest, id=what) for what, *rest in DEFECTS])
def test_a_mistake_is_seen(module: str, old: str, new: str, test: Any) -> None:
    with planted(module, old, new), pytest.raises((AssertionError, StopIteration, IndexError, ValueError)):
        test()
