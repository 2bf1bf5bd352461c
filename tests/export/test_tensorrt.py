"""TensorRT through torch-tensorrt: its converters are asked and used without a GPU; no engine runs here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowmap.cli import main
from flowmap.export import tensorrt
from flowmap.export.backend import Job
from flowmap.export.errors import BackendError, ExportError, MissingPackageError
from flowmap.export.graph import Graph, Input, program
from flowmap.export.manifest import Built
from flowmap.export.plan import plan
from flowmap.export.spec import Asked, ShapeProfile, Target
from flowmap.export.support import Foresees, Support
from flowmap.export.tensorrt import TensorRt, runner, shapes
from tests.export.students import CPU, F32, KINDS, ONE, student, traced

ON_GPU = Asked(target=Target("cuda"))
needs_converters = pytest.mark.skipif(
    find_spec("torch_tensorrt") is None or find_spec("tensorrt_rtx") is None, reason=tensorrt.ASK
)
SMALL = {"frames": 3, "height": 4, "width": 4}
RTX = {"float32": "FLOAT", "int64": "INT64"}


class Bessel(nn.Module):
    """An operator that no converter is known for, between two that have one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x.exp()).cos()


def planted() -> tuple[Graph, torch.export.ExportedProgram]:
    graph = Graph("bad", Bessel(), (Input("x", (8,), F32),), "y")
    return graph, program(graph, ShapeProfile({}), F32, CPU)


def answers(kind: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Of every graph of `kind` what the converters make of it; in one process, since their import takes longest."""
    asked, found = [], {}
    u, family, wanted = student(kind)
    profile = family.profile(u, wanted)
    for graph, made in traced(kind).values():
        files = {"program": str(folder / f"{graph.name}.pt2"), "answer": str(folder / f"{graph.name}.json")}
        torch.export.save(made, files["program"])
        asked.append({**files, **shapes(graph, profile, "float32"), "build": graph.name in ("one_chunk", "step")})
        found[graph.name] = Path(files["answer"])
    script = Path(__file__).with_name("trt_network.py")
    done = subprocess.run([sys.executable, str(script)], input=json.dumps(asked), capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    return {name: json.loads(file.read_text()) for name, file in found.items()}


@needs_converters
@pytest.mark.parametrize("kind", [*KINDS[:3], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[3:])])
def test_every_operator_converts_and_one_engine_is_built(kind: str, tmp_path: Path) -> None:
    answered = answers(kind, tmp_path)
    for graph, made in traced(kind).values():
        found = answered[graph.name]
        engine = found.pop("engine", None)
        support = Support(**found)
        assert support.whole and support.convertible == support.operators > 100, support.problem()
        if engine is None:
            continue
        assert engine["bytes"] > 100_000  # the weights are in it
        given = list(made.example_inputs[0])
        assert [d for d, _ in engine["inputs"]] == [RTX[str(a.dtype).removeprefix("torch.")] for a in given]
        assert [len(shape) for _, shape in engine["inputs"]] == [a.ndim for a in given]
        if "ranges" not in kind:
            assert [shape for _, shape in engine["inputs"]] == [list(a.shape) for a in given]
        assert len(engine["outputs"]) == 1 and engine["outputs"][0][0] == "FLOAT"


@needs_converters
def test_an_operator_without_a_converter_is_named() -> None:
    found = TensorRt().supports(planted()[1])
    assert found.missing == {"aten.special_bessel_j0.default": 1}
    assert (found.operators, found.convertible, found.engines, found.whole) == (3, 2, 2, False)
    assert found.problem() == "it has no converter for aten.special_bessel_j0.default (1)"


@needs_converters
def test_the_plan_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    (graph,) = plan(ONE, to="tensorrt", sizes=SMALL)
    assert isinstance(graph.support, Support) and graph.support.whole


@needs_converters
@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan21", "far", "wan21_14b", "far_14b"])
def test_the_true_sizes(name: str) -> None:
    for graph in plan(name, to="tensorrt", sizes={"frames": 21, "height": 60, "width": 104}, precision="bf16"):
        assert isinstance(graph.support, Support) and graph.support.whole, graph.support


def test_a_plan_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tensorrt, "versions", lambda *packages: {})
    (graph,) = plan(ONE, to="tensorrt", sizes=SMALL)
    assert isinstance(graph.support, str) and "pip install" in graph.support
    (graph,) = plan(ONE, to="onnx", sizes=SMALL)
    assert graph.support == "onnx says it while it builds"
    from flowmap.cli.export import support

    assert support("tensorrt", Support("x 1", 3, {"aten.qr": 1}, 2)) == (
        "2 of 3 convertible, 2 engines, says x 1; tensorrt cannot build it: it has no converter for aten.qr (1)"
    )
    assert support("tensorrt", Support("x 1", 3, {}, 1)) == "3 of 3 convertible, one engine, says x 1"
    assert support("onnx", "why").endswith("not known whether onnx takes all: why")


def test_a_crash_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "versions", lambda *packages: {"torch-tensorrt": "2.13.0"})
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: object())
    crash = subprocess.CompletedProcess([], -11, "", "a warning\n")
    monkeypatch.setattr(tensorrt.subprocess, "run", lambda *args, **more: crash)
    with pytest.raises(BackendError, match="cannot say which operators it has: it ended with -11"):
        TensorRt().supports(planted()[1])


@pytest.mark.parametrize(
    "asked, said",
    [
        (Asked(), "tensorrt is built on a GPU, for GPUs of its kind"),
        (Asked(target=Target("cuda", ("8.9",))), "leave the compute capability 8.9 out"),
        (Asked("fp8", Target("cuda")), "tensorrt has no fp8"),
        (Asked(target=Target("cuda"), options={"strip": True}), "has no option 'strip'; it has weight_stream"),
        (Asked(target=Target("cuda"), options={"optimization_level": 6}), "must be from 0 to 5"),
    ],
)
def test_what_cannot_be_asked_for(asked: Asked, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        TensorRt().check(asked)


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(TensorRt(), Foresees)
    monkeypatch.setattr(tensorrt, "versions", lambda *packages: {})
    with pytest.raises(MissingPackageError, match="torch-tensorrt is not installed: pip install 'flowmap-distill"):
        TensorRt().check(ON_GPU)
    monkeypatch.setattr(tensorrt, "versions", lambda *packages: {"torch-tensorrt-rtx": "2.13.0"})
    with pytest.raises(MissingPackageError, match="builds other engines"):
        TensorRt().check(ON_GPU)
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: None)
    assert not TensorRt().available().ok and "pip install" in TensorRt().available().reason
    with pytest.raises(MissingPackageError, match="tensorrt_rtx is not installed, which torch-tensorrt-rtx needs"):
        TensorRt().supports(planted()[1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "student").mkdir()
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "student"), "--to", "tensorrt", "--device", "cuda", "--out", str(out)]) == 2
    assert "is built on one, and there is none here" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "student"), "--to", "tensorrt", "--out", str(out)]) == 2
    assert "tensorrt is built on a GPU, for GPUs of its kind, and there is none here" in capsys.readouterr().err
    assert not out.exists()


def test_the_builder_is_told_the_ranges_and_refuses_two_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    u, family, wanted = student("ranges")
    graph, made = traced("ranges")["one_chunk"]
    told: dict[str, Any] = {}

    def work(program: object, folder: Path, asked: dict[str, Any], failing: str) -> Support:
        told.update(asked)
        return Support("x 1", 9, {}, 2)

    monkeypatch.setattr(tensorrt, "work", work)
    job = Job(made, graph, family.profile(u, wanted), Asked(target=Target("cuda")), tmp_path)
    with pytest.raises(BackendError, match="cannot build 'one_chunk' as one engine: it would become 2 engines, says x"):
        TensorRt().build(job)
    assert told["shapes"][0] == [[1, 1, 4, 4, 4], [2, 3, 4, 4, 6], [3, 4, 4, 8, 8]]
    assert told["dtypes"] == ["float32"] * 4 and told["weight_streaming"] is False
    assert not list(tmp_path.iterdir())


def test_an_engine_of_other_inputs_is_refused() -> None:
    graph, _ = planted()
    built = Built.of(graph, ShapeProfile({}), "float32", "bad.engine")
    names = ["x", "output0", "output1"]
    engine = SimpleNamespace(
        num_io_tensors=3, get_tensor_name=names.__getitem__, get_tensor_mode=lambda name: "in" if name == "x" else "out"
    )
    with pytest.raises(BackendError, match="takes x and makes output0, output1: it should take 1 tensors and make one"):
        runner(engine, "in", built)
