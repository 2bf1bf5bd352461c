"""`--precision fp8`: what is rounded, by which ranges, what comes out, and who refuses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_wan.network import WanFlowMap
from torch import Tensor, nn

import flowmap
from flowmap.export import fp8
from flowmap.export.errors import ExportError, ParityError
from flowmap.export.fp8 import E4M3, Fp8Linear, dequantize, linears, quantize, quantized
from flowmap.export.manifest import Manifest
from flowmap.export.onnx import Onnx
from flowmap.export.spec import Target
from flowmap.export.tensorrt_rtx import TensorRtRtx
from tests.export.students import CAUSAL, CPU, ONE, shaken, student
from tests.export.test_api import DIGITS, PROMPT, SIZES

needs_onnx = pytest.mark.skipif(not Onnx().available().ok, reason=Onnx().available().reason)
needs_rtx = pytest.mark.skipif(not TensorRtRtx().available().ok, reason=TensorRtRtx().available().reason)


def half(spec: Any) -> WanFlowMap:
    """As a student that is loaded in float16."""
    u = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float16)["student"].half()
    u.load_state_dict(shaken(spec).half().state_dict())
    return u.eval().requires_grad_(False)


def test_a_number_is_rounded_to_three_bits_and_cut_at_the_largest() -> None:
    x = torch.tensor([1.0, 1.06, 1.07, 1.95, -500.0, 1e9, 2.0**-9, 0.0])
    one = torch.tensor(1.0)
    q = quantize(x, one)
    assert q.dtype == E4M3
    assert dequantize(q, one).tolist() == [1.0, 1.0, 1.125, 2.0, -448.0, 448.0, 2.0**-9, 0.0]
    scale = torch.tensor(0.25, dtype=torch.float16)
    assert dequantize(quantize(x.half()[:1], scale), scale).dtype == torch.float16


def test_a_layer_is_the_product_of_the_rounded() -> None:
    linear, x = nn.Linear(16, 8), torch.randn(5, 16)
    made = Fp8Linear(linear, float(x.abs().max()))
    error = (made(x) - linear(x)).norm() / linear(x).norm()
    assert 1e-3 < error < 0.06
    assert made.weight.dtype == E4M3 and made.bias is linear.bias
    beyond = Fp8Linear(linear, float(x.abs().max()) / 4)  # a range that is too small cuts
    assert (beyond(x) - linear(x)).norm() > 3 * (made(x) - linear(x)).norm()
    assert Fp8Linear(nn.Linear(2, 2).half(), 0.0).input_scale == fp8.LEAST


def test_the_repeated_blocks_alone() -> None:
    """Not what embeds patches, times and text, nor the head; and the student stays as it is."""
    u, (_, family, asked) = half(ONE), student("fixed")
    before = {name: value.clone() for name, value in u.state_dict().items()}
    (graph,) = quantized(family.graphs(u), u, family, asked, family.config(u), CPU)
    names = {name for name, module in graph.module.named_modules() if isinstance(module, Fp8Linear)}
    assert len(names) == 2 * 10 and all(name.startswith("blocks.") for name in names)
    assert not [*linears(graph.module)]
    assert {name: type(module) for name, module in u.named_modules() if isinstance(module, Fp8Linear)} == {}
    for name, value in u.state_dict().items():
        assert torch.equal(value, before[name])
    scales = {float(graph.module.get_submodule(name).input_scale) for name in names}
    assert len(scales) > 10  # each has a range of its own


def test_every_graph_of_a_causal_one_with_the_same_ranges() -> None:
    u, (_, family, asked) = half(CAUSAL), student("causal ranges")
    graphs = quantized(family.graphs(u), u, family, asked, family.config(u), CPU)
    ranges = [
        {name: float(m.input_scale) for name, m in g.module.named_modules() if isinstance(m, Fp8Linear)} for g in graphs
    ]
    assert len(ranges) == 3 and ranges[0] == ranges[1] == ranges[2] and len(ranges[0]) == 20


def test_prompts_are_real_where_there_is_a_text_encoder() -> None:
    u, (_, family, asked) = half(ONE), student("fixed")
    seen = []

    class Codec:
        def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
            seen.extend(prompts)
            return {"text": torch.zeros(len(prompts), 16, 16)}

    quantized(family.graphs(u), u, family, asked, family.config(u), CPU, codec=Codec())  # type: ignore[arg-type]
    assert len(seen) == len(fp8.STEPS) * 2 and set(seen) == set(fp8.PROMPTS)


@needs_onnx
def test_an_onnx_file_that_is_the_student_but_for_the_rounding(tmp_path: Path) -> None:
    import onnx

    out = tmp_path / "out"
    DIGITS.save(shaken(DIGITS), tmp_path / "student")
    sizes = {"frames": 5, "height": 8, "width": 8, "text": 12}
    report = flowmap.export(tmp_path / "student", "onnx", out, sizes=sizes, precision="fp8", rollouts=(2,))
    assert 1e-3 < report.worst < 0.1
    manifest = Manifest.read(out)
    assert manifest.precision == "fp8" and manifest.numbers["float8_e4m3fn"] == 4 * 24 * 24 * 2 + 2 * 24 * 48
    model = onnx.load(out / "one_chunk.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (10, 20)
    assert [i.version for i in model.opset_import if not i.domain] == [21]
    narrow = [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT8E4M3FN and i.dims]
    assert len(narrow) == 10
    found = json.loads((out / "parity.json").read_text())
    assert {m["limit"] for m in found["measured"]} == {0.1, 0.1 * 3}
    z = torch.randn(1, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    cond = {"text": DIGITS.codec(device=CPU, dtype=torch.float32).encode_prompts([PROMPT])["text"]}
    assert flowmap.sample(flowmap.export.flow_map(out), z, cond, 3).isfinite().all()


@needs_rtx
def test_an_engine_is_built_for_gpus_that_have_it(tmp_path: Path) -> None:
    target = Target("cuda", ("8.9",))
    report = flowmap.export(
        half(ONE), "tensorrt-rtx", tmp_path / "out", sizes=SIZES, precision="fp8", target=target, rollouts=(1,)
    )
    assert (tmp_path / "out" / "one_chunk.engine").stat().st_size > 10_000 and report.worst < 0.1


@pytest.mark.parametrize(
    "to, target, said",
    [
        ("torch-export", Target(), "torch-export has no fp8"),
        ("aoti", Target(), "aoti has no fp8"),
        ("tensorrt-rtx", Target("cuda", ("8.6",)), r"compute capability 8\.6 does not multiply in fp8: must be 8\.9"),
    ],
)
def test_who_has_none_says_so_before_anything(
    to: str, target: Target, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp8, "quantized", lambda *args: pytest.fail("it has begun"))
    with pytest.raises(ExportError, match=said):
        flowmap.export(student("fixed")[0], to, tmp_path / "out", sizes=SIZES, precision="fp8", target=target)
    assert not list(tmp_path.iterdir())


def test_a_range_that_was_never_seen_and_a_network_without_blocks() -> None:
    u, (_, family, asked) = half(ONE), student("fixed")
    (graph,) = family.graphs(u)
    bare = evolve(graph, module=nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ExportError, match="no linear layer in a repeated block"):
        quantized((bare,), u, family, asked, {}, CPU)
    new = fp8._replaced(graph.module, {})
    assert len([*linears(new)]) == 20  # stay as they are


@needs_onnx
def test_a_range_that_is_wrong_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "_seen", lambda graphs, *args: {n: 0.05 for g in graphs for n, _ in linears(g.module)})
    with pytest.raises(ParityError, match="is allowed in fp8"):
        flowmap.export(half(ONE), "onnx", tmp_path / "out", sizes=SIZES, precision="fp8", rollouts=(1,))
    assert not list(tmp_path.iterdir())
