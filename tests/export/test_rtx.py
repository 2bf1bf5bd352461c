"""TensorRT-RTX: engines are built on a machine without a GPU; they run nowhere in these tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import flowmap
from flowmap.export import errors, rtx_load, tensorrt_rtx, weights
from flowmap.export.backend import check_machine
from flowmap.export.errors import ExportError
from flowmap.export.manifest import Manifest
from flowmap.export.spec import Asked, Target
from flowmap.export.tensorrt_rtx import TensorRtRtx
from tests.export.students import KINDS, ONE, student
from tests.export.test_refit import moved

AHEAD = Target("cuda", ("8.9", "12.0"))
needs_rtx = pytest.mark.skipif(not TensorRtRtx().available().ok, reason=TensorRtRtx().available().reason)


@needs_rtx
@pytest.mark.parametrize("kind", [*KINDS[:3], pytest.param(KINDS[3], marks=pytest.mark.slow)])
def test_an_engine_is_built_and_its_onnx_is_the_student(kind: str, tmp_path: Path) -> None:
    u, _, asked = student(kind)
    out = tmp_path / "out"
    target = AHEAD if kind == "fixed" else Target("cuda", ("8.9",))
    report = flowmap.export(u, "tensorrt-rtx", out, sizes={**asked.dims}, target=target, rollouts=(1,))
    for graph in report.manifest.graphs:
        assert (out / graph.file).suffix == ".engine" and (out / graph.file).stat().st_size > 10_000
    assert report.worst is not None and report.worst < 1e-5
    if torch.cuda.is_available():
        return
    assert "not run, there is no GPU here" in json.loads((out / "parity.json").read_text())["compared"]
    with pytest.raises(errors.NoDeviceError, match="runs on a CUDA GPU, and there is none here"):
        flowmap.export.load(out)


@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU engines are refitted in place")
def test_other_weights_without_a_gpu(tmp_path: Path) -> None:
    """The engine is built again from the refitted ONNX file, with the options that it had; nothing is traced."""
    old, new = tmp_path / "old", tmp_path / "new"
    u, _, asked = student("fixed")
    options = {"weight_streaming": True}
    flowmap.export(u, "tensorrt-rtx", old, sizes={**asked.dims}, target=AHEAD, rollouts=(1,), options=options)
    assert Manifest.read(old).options == options
    report = flowmap.export.refit(old, moved(ONE, 7), new, rollouts=(1,))
    assert report.worst is not None and report.worst < 1e-5
    engines = [(folder / "one_chunk.engine").read_bytes() for folder in (old, new)]
    assert engines[0] != engines[1] and len(engines[0]) == len(engines[1])
    _names_are_the_parsers(new)


def _names_are_the_parsers(folder: Path) -> None:
    """By which a refitter knows them: the library takes each for the name of weights, and takes no other."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, logger).parse_from_file(str(folder / "one_chunk.onnx"))
    placed = [h.initialiser for h in weights.read(folder, "one_chunk").values() if h.initialiser is not None]
    assert len(placed) > 70 and all(network.mark_weights_refittable(name) for name in placed)
    assert not network.mark_weights_refittable("nobody")


@pytest.mark.parametrize("option", ["refittable", "strip"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_the_builder_needs_a_gpu_for(option: str) -> None:
    said = {"refittable": "that is refittable", "strip": "that is stripped"}[option]
    with pytest.raises(errors.NoDeviceError, match=f"builds an engine {said} on a machine with a GPU alone"):
        TensorRtRtx().check(Asked(target=AHEAD, options={option: True}))
    TensorRtRtx().check(Asked(target=AHEAD, options={option: False, "weight_streaming": True}))


BUILD = """
import json, sys
import numpy as np
import tensorrt_rtx as trt

logger, found = trt.Logger(trt.Logger.ERROR), {}
for flag in ("WEIGHT_STREAMING", "REFIT", "STRIP_PLAN"):
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x, w = network.add_input("x", trt.float32, (4, 4)), network.add_constant((4, 4), np.eye(4, dtype=np.float32))
    none = trt.MatrixOperation.NONE
    network.mark_output(network.add_matrix_multiply(x, none, w.get_output(0), none).get_output(0))
    config = builder.create_builder_config()
    config.set_flag(getattr(trt.BuilderFlag, flag))
    found[flag] = builder.build_serialized_network(network, config) is not None
print(json.dumps(found))
"""


@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_library_still_cannot_without_a_gpu() -> None:
    """Where this fails, a release can, and `ON_A_GPU` has an entry too many."""
    done = subprocess.run([sys.executable, "-c", BUILD], text=True, capture_output=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"WEIGHT_STREAMING": True, **{tensorrt_rtx.FLAGS[name]: False for name in tensorrt_rtx.ON_A_GPU}}


@needs_rtx
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that engines are built for")
@pytest.mark.parametrize("options", [{"refittable": True}, {"refittable": True, "strip": True}], ids=str)
def test_an_engine_is_refitted_on_a_gpu(options: dict[str, bool], tmp_path: Path) -> None:
    """Never run yet. A stripped one is smaller, and takes the other weights as it is."""
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    if capability not in tensorrt_rtx.CAPABILITIES:
        pytest.skip(f"no engines for {capability}")
    u, _, asked = student("fixed")
    target, sizes, old = Target("cuda", (capability,)), {**asked.dims}, tmp_path / "old"
    flowmap.export(u, "tensorrt-rtx", tmp_path / "plain", sizes=sizes, target=target, rollouts=(1,))
    flowmap.export(u, "tensorrt-rtx", old, sizes=sizes, target=target, rollouts=(1,), options=options)
    if options.get("strip"):
        plain, stripped = (folder / "one_chunk.engine" for folder in (tmp_path / "plain", old))
        assert stripped.stat().st_size < plain.stat().st_size
    flowmap.export.refit(old, moved(ONE, 7).to("cuda"), tmp_path / "new", rollouts=(1,))


def manifest(**options: bool) -> Manifest:
    return Manifest("tensorrt-rtx", "wan", (), "float32", AHEAD, {}, "", {}, {}, options=options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_which_engines_take_other_weights_here() -> None:
    """One with weights of its own is refitted on a GPU; one without is what it was; any other is built again."""
    asked = Asked(target=AHEAD)
    for options in ({}, {"weight_streaming": True}, {"refittable": True, "strip": True}):
        TensorRtRtx().check_refit(manifest(**options), asked)
    with pytest.raises(errors.NoDeviceError, match="is refitted on a GPU, and there is none here"):
        TensorRtRtx().check_refit(manifest(refittable=True), asked)
    with pytest.raises(ExportError, match="is stripped and takes its own weights alone: export again"):
        TensorRtRtx().check_refit(manifest(strip=True), asked)


def test_an_engine_for_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    with pytest.raises(
        errors.ArchitectureError, match=r"for compute capability 8\.9 or 12\.0, the GPU here .* has 9\.0"
    ):
        check_machine(manifest())


class Engine:
    """Stands in for the library's own: which calls a refit is, in which order."""

    said: list[str] = []  # noqa: RUF012

    def __init__(self, *args: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        self.said.append(name)
        if name == "get_missing_weights":
            return list
        return lambda *args: Engine() if name.startswith(("deserialize", "create")) else True


@needs_rtx
def test_the_calls_of_a_refit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On names that the library has; it has not been run on a GPU."""
    import tensorrt_rtx as trt

    kinds = (trt.Runtime, trt.Refitter, trt.OnnxParserRefitter, trt.ICudaEngine, trt.ISerializationConfig)
    for name in ("Runtime", "Refitter", "OnnxParserRefitter"):
        monkeypatch.setattr(trt, name, Engine)
    (tmp_path / "x.engine").write_bytes(b"engine")
    Engine.said.clear()
    rtx_load.serialised(rtx_load.refitted(tmp_path / "x.engine", tmp_path / "x.onnx"))
    refit = ["deserialize_cuda_engine", "refit_from_file", "get_missing_weights", "refit_cuda_engine"]
    write = ["create_serialization_config", "set_flag", "clear_flag", "serialize_with_config"]
    assert Engine.said == refit + write
    assert all(any(name in dir(kind) for kind in kinds) for name in Engine.said)


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
        ({}, r"give the device cuda .*and compute capabilities.*, of 7\.5, 8\.0"),
        ({"target": Target("cuda")}, r"give the device cuda .*and compute capabilities"),
        ({"target": Target("cuda", ("9.0",))}, "does not build for 9.0: must be of 7.5"),
        (
            {"target": AHEAD, "options": {"refit": True}},
            "has no option 'refit'; it has refittable, weight_streaming, strip",
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
