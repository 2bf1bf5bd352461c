"""Steps for each chunk, [4, 2, 2, ...], of a causal student that was exported: the sampler's own video, from files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flowmap_far.runner import ExportedFar

import flowmap
from flowmap import FlowMap, Rng, sample
from flowmap._types import Cond, Latent
from flowmap.export.aoti import Aoti, compiler
from flowmap.export.onnx import Onnx
from flowmap.model import Sampling
from flowmap.rollout import consistency_step, generate
from flowmap.times import Steps, grids_of

from .students import runner, student, traced

needs_onnx = pytest.mark.skipif(not Onnx().available().ok, reason=Onnx().available().reason)
needs_compiler = pytest.mark.skipif(compiler() is None, reason=Aoti().available().reason)
STEPS: tuple[Steps, ...] = ([4, 2], [4, 2, 2], [1, 3, 2, 1, 2], [3], 2)
KIND = "causal fixed"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("onnx", marks=needs_onnx),
        "torch-export",
        pytest.param("aoti", marks=[needs_compiler, pytest.mark.slow]),
    ],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FlowMap:
    """Out of the files of an export: five chunks of one frame, three at full resolution."""
    u, _, asked = student(KIND)
    out = tmp_path_factory.mktemp("chunk_steps") / "out"
    flowmap.export(u, request.param, out, sizes=dict(asked.dims), rollouts=(1,))
    return flowmap.export.flow_map(out)


def clip() -> tuple[Latent, Cond]:
    u, family, asked = student(KIND)
    return family.example(u, asked.usual(), Rng.seeded(3))


def same(found: Latent, wanted: Latent) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", STEPS, ids=str)
def test_a_list_of_steps_is_that_of_the_sampler(exported: FlowMap, steps: Steps) -> None:
    u, (z, cond) = student(KIND)[0], clip()
    wanted = sample(u, z, cond, steps, shift=5.0)
    same(sample(exported, z, cond, steps, shift=5.0), wanted)
    assert steps == 2 or float((wanted - sample(u, z, cond, 2, shift=5.0)).abs().max()) > 1e-3  # it matters


def test_chunks_that_are_given_count_among_them(exported: FlowMap) -> None:
    """The first of the steps belongs to the first chunk of the video, which is there already."""
    u, (z, cond) = student(KIND)[0], clip()
    given = Rng.seeded(7).noise_like(z[:, :2])
    wanted = sample(u, z, cond, [4, 1, 3], context=given)
    same(sample(exported, z, cond, [4, 1, 3], context=given), wanted)
    same(wanted, sample(u, z, cond, [1, 1, 3], context=given))


def test_other_steps_and_own_levels_too(exported: FlowMap) -> None:
    """Jumps to data with fresh noise, and the levels that a student was made for where the number is theirs."""
    u, (z, cond) = student(KIND)[0], clip()
    grid = grids_of(Sampling("consistency", times=(1.0, 0.9, 0.5)), [3, 2], 5.0)
    assert grid[0].tolist() == pytest.approx([1.0, 0.9, 0.5, 0.0]) and len(grid[1]) == 3
    walks = [sample(net, z, cond, grid=grid, step=consistency_step) for net in (exported, u)]
    same(*walks)


def test_as_a_stream_it_is_the_same_video(exported: FlowMap) -> None:
    u, (z, cond) = student(KIND)[0], clip()
    grid = grids_of(Sampling(), [4, 2], 1.0)
    made = [*generate(exported, z.split(1, dim=1), cond, grid, None)]
    with torch.no_grad():
        same(torch.cat(made, 1), sample(u, z, cond, [4, 2]))


def test_more_chunks_than_the_video_has_are_refused(exported: FlowMap) -> None:
    z, cond = clip()
    with pytest.raises(ValueError, match=r"steps of 6 chunks, one by one: this video has 5 chunks: must be 1 to 5"):
        sample(exported, z, cond, [4, 2, 2, 2, 2, 2])


# ------------------------------------------------------------------ chunks of several frames, and what it costs
def watched(kind: str, seen: list[str]) -> Any:
    def of(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: torch.Tensor) -> Any:
            seen.append(name)
            return call(*given)

        return run

    return runner(kind, {name: of(name, program.module()) for name, (_, program) in traced(kind).items()})


@pytest.mark.parametrize("kind", ["causal ranges", "causal small past"])
@pytest.mark.parametrize("steps", [[4, 2], [1, 3, 2]], ids=str)
def test_chunks_of_several_frames_that_are_compressed(kind: str, steps: list[int]) -> None:
    u, family, asked = student(kind)
    made = watched(kind, [])
    assert isinstance(made, ExportedFar)
    z, cond = family.example(u, asked.usual(), Rng.seeded(5))
    with torch.no_grad():
        same(sample(made, z, cond, steps), sample(u, z, cond, steps))


def test_a_chunk_takes_its_own_number_of_calls() -> None:
    """4 + 2 + 2 + 2 + 2 steps, and a chunk is encoded before each of the four that follow."""
    counted: list[str] = []
    z, cond = clip()
    sample(watched(KIND, counted), z, cond, [4, 2])
    assert counted.count("step") == 12 and len(counted) == 16
    assert [i for i, name in enumerate(counted) if name != "step"] == [4, 7, 10, 13]
