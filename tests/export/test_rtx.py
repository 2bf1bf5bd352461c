"""TensorRT-RTX: engines are built on a machine without a GPU; they run nowhere in these tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import flowmap
from flowmap.export import errors, tensorrt_rtx
from flowmap.export.errors import ExportError
from flowmap.export.spec import Asked, Target
from flowmap.export.tensorrt_rtx import TensorRtRtx
from tests.export.students import KINDS, student

AHEAD = Target("cuda", ("8.9", "12.0"))
needs_rtx = pytest.mark.skipif(not TensorRtRtx().available().ok, reason=TensorRtRtx().available().reason)


@needs_rtx
@pytest.mark.parametrize("kind", [*KINDS[:3], pytest.param(KINDS[3], marks=pytest.mark.slow)])
def test_an_engine_is_built_and_its_onnx_is_the_student(kind: str, tmp_path: Path) -> None:
    u, _, asked = student(kind)
    out = tmp_path / "out"
    target = AHEAD if kind == "fixed" else Target("cuda", ("8.9",))
    report = flowmap.export(u, "tensorrt-rtx", out, sizes={**asked.dims}, target=target, steps=(1,))
    for graph in report.manifest.graphs:
        assert (out / graph.file).suffix == ".engine" and (out / graph.file).stat().st_size > 10_000
    assert report.worst is not None and report.worst < 1e-5
    if torch.cuda.is_available():
        return
    assert "not run, there is no GPU here" in json.loads((out / "parity.json").read_text())["compared"]
    with pytest.raises(errors.NoDeviceError, match="runs on a CUDA GPU, and there is none here"):
        flowmap.export.load(out)


@needs_rtx
def test_an_engine_that_cannot_be_built_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_rtx, "write", lambda program, graph, path: path.write_bytes(b"no ONNX"))
    u, _, asked = student("fixed")
    with pytest.raises(errors.BackendError, match="tensorrt-rtx cannot build 'one_chunk': "):
        flowmap.export(u, "tensorrt-rtx", tmp_path / "out", sizes={**asked.dims}, target=AHEAD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "asked, said",
    [
        ({}, "give the device cuda and compute capabilities, of 7.5, 8.0"),
        ({"target": Target("cuda")}, "give the device cuda and compute capabilities"),
        ({"target": Target("cuda", ("9.0",))}, "does not build for 9.0: must be of 7.5"),
        (
            {"target": AHEAD, "options": {"refitt": True}},
            "has no option 'refitt': must be one of refit, weight_streaming",
        ),
    ],
)
def test_what_cannot_be_asked_for(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        TensorRtRtx().check(Asked(**asked))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU compares in bf16")
def test_bf16_cannot_be_compared_without_a_gpu() -> None:
    with pytest.raises(ExportError, match="bf16 cannot be compared"):
        TensorRtRtx().check(Asked("bf16", AHEAD))
    TensorRtRtx().check(Asked("bf16", AHEAD, check=False))


@pytest.mark.parametrize("name", ["8", "sm_89", "8.9.0", "x.y"])
def test_a_compute_capability_has_two_numbers(name: str) -> None:
    with pytest.raises(ExportError, match=r"must be as 8\.9"):
        Target("cuda", (name,))
