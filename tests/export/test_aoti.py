"""An AOTInductor package as others use it: without flowmap's checks, and with those that torch has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import flowmap
from flowmap import FlowMap
from flowmap.export.aoti import Aoti
from flowmap.export.errors import ExportError
from flowmap.export.runner import packed
from flowmap.export.spec import Asked
from tests.export.students import student
from tests.export.test_backends import needs_compiler

NAME, VALUE = Aoti().switch.split("=")


class Frames(FlowMap):
    """[B, F, 3], a time for each sample: what is contiguous matters in F and 3."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, z: Any, t: Any, r: Any, cond: Any, cache: Any = None) -> Any:
        return torch.tanh(self.linear(z)) * (t - r)[:, None, None] + z.cumsum(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[FlowMap, Path]:
    out = tmp_path_factory.mktemp("aoti") / "out"
    u = Frames().eval().requires_grad_(False)
    flowmap.export(u, "aoti", out, example=(torch.zeros(2, 5, 3), {}), sizes={"batch": (1, 1, 4)}, rollouts=(1,))
    return u, out


def inputs(batch: int) -> tuple[torch.Tensor, ...]:
    made = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, 5, 3, generator=made),
        torch.rand(batch, generator=made),
        torch.rand(batch, generator=made),
    )


def package(out: Path) -> Any:
    from torch._inductor import aoti_load_package

    return aoti_load_package(str(out / "one_chunk.pt2"))


@needs_compiler
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_torchs_own_check_takes_every_declared_size(
    batch: int, made: tuple[FlowMap, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    u, out = made
    monkeypatch.setenv(NAME, VALUE)
    given = inputs(batch)
    torch.testing.assert_close(package(out)(*given), u(*given, {}), atol=1e-5, rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("what", ["batch 5", "float64", "transposed"])
def test_and_refuses_others(what: str, made: tuple[FlowMap, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, VALUE)
    z, t, r = inputs(5 if what == "batch 5" else 2)
    z = z.double() if what == "float64" else z.transpose(1, 2).contiguous().transpose(1, 2) if "tr" in what else z
    with pytest.raises(RuntimeError):
        package(made[1])(z, t, r)


@needs_compiler
def test_flowmaps_own_call_takes_any_strides(made: tuple[FlowMap, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, VALUE)
    u, out = made
    z, t, r = inputs(2)
    wanted, sideways = u(z, t, r, {}), z.transpose(1, 2).contiguous().transpose(1, 2)
    again = flowmap.export.load(out)
    for other in (sideways, z.flip(0)[[1, 0]], torch.cat([z, z])[::2][[0, 0]].expand(2, 5, 3)):
        torch.testing.assert_close(again(other, t, r, {}), u(other, t, r, {}), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again(sideways, t, r, {}), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again(z, t[:1].expand(2), r, {}), u(z, t[:1].expand(2), r, {}), atol=1e-5, rtol=1e-5)


@needs_compiler
def test_the_manifest_says_so(made: tuple[FlowMap, Path]) -> None:
    found = json.loads((made[1] / "manifest.json").read_text())
    assert found["switch"] == "AOTI_RUNTIME_CHECK_INPUTS=1"
    assert [graph["layout"] for graph in found["graphs"]] == ["contiguous"]


def test_strides_of_a_dimension_of_one_are_packed_too() -> None:
    a = torch.randn(1, 9, 4)[:, :3]
    assert a.is_contiguous() and a.stride() == (36, 4, 1)
    assert packed(a).stride() == (12, 4, 1) and packed(a).data_ptr() == a.data_ptr()
    assert packed(torch.randn(3).expand(2, 3)).stride() == (3, 1) and packed(torch.tensor(1.0)).shape == ()


@pytest.mark.parametrize("name", ["aot_inductor.package", "aot_inductor.output_path"])
def test_settings_that_an_export_makes_itself(name: str) -> None:
    with pytest.raises(ExportError, match=f"inductor has '{name}', which an export sets itself"):
        Aoti().check(Asked(options={"inductor": {name: True}}))


@needs_compiler
@pytest.mark.slow
def test_a_student_at_its_least_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, VALUE)
    u, _, sizes = student("ranges")
    made = flowmap.export(u, "aoti", tmp_path / "out", sizes={**sizes.dims}, rollouts=(1,))
    assert made.worst is not None and made.worst < 1e-5
