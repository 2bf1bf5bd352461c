"""Every back end that runs without a GPU: what it builds is the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import flowmap
from flowmap import FlowMap
from flowmap.export.aoti import Aoti, compiler
from flowmap.export.backend import Exporter, Job
from flowmap.export.manifest import Built, Manifest
from flowmap.export.onnx import Onnx
from flowmap.export.spec import DTYPES, Asked, Precision, Target
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
        onnx.checker.check_model(model, full_check=True)
        assert [i.version for i in model.opset_import if not i.domain] == [18]
        kinds = {i.data_type for i in model.graph.initializer}
        assert not kinds & {onnx.TensorProto.DOUBLE, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}
        assert not {node.op_type for node in model.graph.node} & {"Attention", "If", "Loop", "Scan"}
        if kind == "ranges":
            _names(model)


class Patches(FlowMap):
    """A convolution in 3 dimensions, attention, norms and sinusoids: what Wan is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv3d(4, 8, (1, 2, 2), (1, 2, 2))
        self.norm, self.proj = torch.nn.LayerNorm(8), torch.nn.Linear(8, 16)

    def forward(self, z: Any, t: Any, r: Any, cond: Any, cache: Any = None) -> Any:
        x = self.patches(z.transpose(1, 2).to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)
        x = x + torch.cos(1000 * torch.stack([t, r], -1).repeat(1, 4))[:, None].to(x.dtype)
        x = x + torch.nn.functional.scaled_dot_product_attention(*[self.norm(x)[:, None]] * 3)[:, 0]
        x = torch.nn.functional.gelu(self.proj(x), approximate="tanh").unflatten(1, (z.shape[1], -1)).float()
        return x.unflatten(3, (4, 2, 2)).permute(0, 1, 3, 2, 4, 5).reshape(z.shape)


@needs_onnx
@pytest.mark.parametrize("precision", ["float32", "fp16", "bf16"])
def test_onnx_is_valid_in_every_precision(precision: Precision, tmp_path: Path) -> None:
    """Of fp8: test_fp8."""
    import onnx

    u = Patches().eval().requires_grad_(False).to(DTYPES[precision])
    check = precision != "bf16"
    flowmap.export(u, "onnx", tmp_path / "out", example=(EXAMPLE, {}), precision=precision, check=check)
    model = onnx.load(tmp_path / "out" / "one_chunk.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert "Conv" in {node.op_type for node in model.graph.node}
    assert not {node.op_type for node in model.graph.node} & {"Attention", "RMSNormalization"}  # of opset 23


EXAMPLE = torch.zeros(1, 3, 4, 2, 4)


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
