"""Every back end that runs without a GPU: what it builds is the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowmap.export.aoti import Aoti, compiler
from flowmap.export.backend import Exporter, Job
from flowmap.export.manifest import Built, Manifest
from flowmap.export.onnx import Onnx
from flowmap.export.spec import Asked, Target
from flowmap.export.torch_export import TorchExport
from flowmap.export.verify import Parity, parity
from tests.export.students import KINDS, runner, student, traced

needs_onnx = pytest.mark.skipif(not Onnx().available().ok, reason=Onnx().available().reason)
needs_compiler = pytest.mark.skipif(compiler() is None, reason=Aoti().available().reason)


def built(exporter: Exporter, kind: str, folder: Path, **options: Any) -> Parity:
    """Build every graph, load it from its file, compare."""
    u, family, asked = student(kind)
    profile, calls = family.profile(u, asked), {}
    manifest = Manifest("test", "wan", (), "float32", Target(), {}, "", {}, {})
    for graph, program in traced(kind).values():
        job = Job(program, graph, profile, Asked(options=options), folder)
        file = exporter.build(job)
        calls[graph.name] = exporter.load(folder / file, Built.of(graph, profile, "float32", file), manifest)
    return parity(u, runner(kind, calls), family, asked, "float32", (1, 3))


@pytest.mark.parametrize("kind", KINDS[:4])
def test_torch_export(kind: str, tmp_path: Path) -> None:
    found = built(TorchExport(), kind, tmp_path)
    assert found.worst.good, found.worst


@needs_onnx
@pytest.mark.parametrize("kind", KINDS)
def test_onnx(kind: str, tmp_path: Path) -> None:
    import onnx

    found = built(Onnx(), kind, tmp_path)
    assert found.worst.good, found.worst
    for file in tmp_path.glob("*.onnx"):
        model = onnx.load(file)
        onnx.checker.check_model(model)
        assert [i.version for i in model.opset_import if not i.domain] == [18]
        kinds = {i.data_type for i in model.graph.initializer}
        assert not kinds & {onnx.TensorProto.DOUBLE, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}
        assert not {node.op_type for node in model.graph.node} & {"Attention", "If", "Loop", "Scan"}
        if kind == "ranges":
            _names(model)


def _names(model: Any) -> None:
    """Inputs and dimensions have the names that a manifest gives them."""
    named = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    assert named == {
        "hidden_states": ["batch", "frames", 4, "height", "width"],
        "timestep": ["batch", "frames"],
        "r_timestep": ["batch", "frames"],
        "encoder_hidden_states": ["batch", "text", 16],
    }


@needs_compiler
@pytest.mark.parametrize(
    "kind",
    ["fixed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])],
)
def test_aoti(kind: str, tmp_path: Path) -> None:
    found = built(Aoti(), kind, tmp_path)
    assert found.worst.good, found.worst
