"""Heads on real networks: what one call gives is what calls of their own give; files, fused heads, graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_consistency.decoded import Decoded
from flowmap_consistency.decoder import Decoder
from flowmap_consistency.parallel_decoding import ParallelDecoding
from flowmap_diffusers import Diffusers
from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_wan21 import Wan21
from torch import Tensor

import flowmap
from flowmap import FlowMapSpec, Rng, sample
from flowmap._types import Role
from flowmap.cli import main
from flowmap.export.errors import ExportError
from flowmap.model import Spans
from flowmap.plugins import backbone, trained_by
from flowmap.testing import parametrize_with_backbone_checks
from flowmap.times import euler_grid
from recipes.tiny_wan import RECIPE
from tests.toys import Toy

CPU = torch.device("cpu")
STUDENT = frozenset[Role]({"student"})
ROWS = ("ltx", "hunyuan_video", "cogvideox", "flux", "mochi", "qwen_image")
SPECS: dict[str, FlowMapSpec] = {"wan21": Wan21().tiny(), **{name: Diffusers(family=name) for name in ROWS}}


def with_heads(spec: FlowMapSpec, heads: int = 8) -> Decoder:
    u = Decoded(spec, heads=heads).build(STUDENT, device=CPU, dtype=torch.float32)["student"]
    assert isinstance(u, Decoder)
    with torch.no_grad():
        for p in u.bank.parameters():
            p.copy_(0.1 * Rng.seeded(7).noise_like(p))
    return u


@pytest.mark.parametrize("name", SPECS)
def test_stretches_of_one_call_are_those_of_their_own_on_real_networks(name: str) -> None:
    """Whatever follows the last layer, such as patches put in place or a change of variables, is linear in it."""
    spec = SPECS[name]
    u, (z, cond) = with_heads(spec), spec.example(2)
    t = u.times[[0, 3]]
    ends = torch.stack([u.times[[1, 4]], u.times[[4, 8]], u.times[[8, 5]]])
    found = u(z, t, t, cond, Spans(t.expand(3, 2), ends))
    for of, end in zip(found, ends, strict=True):
        torch.testing.assert_close(of, u(z, t, end, cond), rtol=1e-4, atol=1e-4)
    assert float((found[0] - found[1]).detach().abs().max()) > 1e-2


@parametrize_with_backbone_checks([Decoded(Wan21()), Decoded(Toy(), layer="net.out")])
def test_heads_keep_what_a_backbone_promises(spec: FlowMapSpec, check: Any) -> None:
    """What `flowmap check` runs, on a real network with adapters, and on one without."""
    check(spec)


def clip() -> tuple[Tensor, dict[str, Tensor]]:
    """Noise and a text of the digits' sizes."""
    return Rng.seeded(1).noise_like(torch.zeros(2, 5, 4, 8, 8)), {
        "text": Rng.seeded(2).noise_like(torch.zeros(2, 12, 32))
    }


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decoder]:
    spec = Decoded(Wan21(TINY_WAN, lora=None, text_tokens=12, shift=3.0), heads=8)
    path, u = tmp_path_factory.mktemp("decoded") / "student", with_heads(spec.backbone)
    u.times = euler_grid(8, 3.0)
    spec.save(u, path)
    (path / "flowmap.json").write_text(json.dumps({"latent_shape": [5, 4, 8, 8], "guidance": 1.0, "shift": 3.0}))
    return path, u


def test_a_directory_with_heads_is_known_for_what_it_is(student: tuple[Path, Decoder]) -> None:
    path, u = student
    spec = backbone(str(path))
    assert isinstance(spec, Decoded) and isinstance(spec.backbone, Wan21)
    assert (spec.heads, spec.shift) == (8, 3.0)
    read, (z, cond) = flowmap.load(path), clip()
    torch.testing.assert_close(sample(read, z, cond, 4, shift=3.0), sample(u, z, cond, 4, shift=3.0))
    assert not (path / "model_index.json").exists()  # diffusers would load it, and know of no heads


def test_fused_heads_and_a_graph_of_them_are_the_student(student: tuple[Path, Decoder], tmp_path: Path) -> None:
    path, u = student
    four, graph = tmp_path / "four", tmp_path / "graph"
    flowmap.export(path, "fused-heads", four, options={"steps": 4})
    fused = flowmap.load(four)
    assert isinstance(fused, Decoder) and len(fused.times) == 5
    z, cond = clip()
    expected = sample(u, z, cond, 4, shift=3.0)
    torch.testing.assert_close(sample(fused, z, cond, 4, shift=3.0), expected, rtol=1e-5, atol=1e-5)
    out = tmp_path / "four.mp4"
    assert main(["sample", str(four), "--prompt", "a two moving up slowly", "--out", str(out)]) == 0 and out.is_file()
    sizes: Any = {"batch": 2, "frames": z.shape[1], "height": z.shape[3], "width": z.shape[4], "text": 12}
    report = flowmap.export(four, "torch-export", graph, sizes=sizes, check=False, compile=False)
    assert report.manifest.family == "decoded"
    called = flowmap.export.flow_map(graph)
    torch.testing.assert_close(sample(called, z, cond, 4, shift=3.0), expected, rtol=1e-4, atol=1e-4)


def test_a_schedule_beside_the_grid_is_refused(student: tuple[Path, Decoder], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"steps = 3: its steps end up to .* beside points of the grid of 8 heads"):
        flowmap.export(student[0], "fused-heads", tmp_path / "three", options={"steps": 3})


def test_any_recipe_takes_the_method_by_name(tmp_path: Path) -> None:
    """The digits' own settings; two iterations of them, sampled by the command line."""
    recipe = trained_by(RECIPE, "parallel_decoding")
    assert isinstance(recipe.backbone, Decoded) and recipe.spec_of("teacher") == recipe.backbone
    ((_, matching),) = recipe.stages[0].method.updates[0].terms
    assert isinstance(matching, ParallelDecoding)
    asked = (1, 2, 4, 8, 16, 32)  # each of their steps is a block that training begins
    assert not any(recipe.backbone.heads // n % matching.least for n in asked)
    small = evolve(recipe.capped(2), data=MovingDigits(count=8), evaluation=None)
    stages = tuple(evolve(stage, batch=2) for stage in small.stages)
    flowmap.distill(evolve(small, stages=stages), out=tmp_path / "run", device="cpu")
    out = tmp_path / "a.mp4"
    words = ["sample", str(tmp_path / "run"), "--prompt", "a two moving up slowly", "--steps", "2", "--out", str(out)]
    assert main(words) == 0 and out.is_file()
