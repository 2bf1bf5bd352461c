"""Refit: every trained tensor reaches its initialiser, and other weights make the export of another student."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_far import Far
from flowmap_lora.roles import Lora
from flowmap_wan.spec import TINY
from flowmap_wan21 import Wan21
from torch import Tensor, nn
from torch.export import ExportedProgram

import flowmap
from flowmap import FlowMap, Rng, sample
from flowmap._types import Cond, Latent, Time
from flowmap.cli import main
from flowmap.export import api, errors, onnx, refit, weights
from flowmap.export.constants import CONSTANTS
from flowmap.export.errors import ExportError
from flowmap.export.graph import Graph, Input, program
from flowmap.export.manifest import Manifest
from flowmap.export.onnx import Onnx
from flowmap.export.spec import Asked, ShapeProfile, Target
from flowmap.export.weights import WEIGHTS
from tests.export.students import CAUSAL, CPU, FIXED, KINDS, ONE, shaken, student, traced
from tests.export.test_api import DIGITS

needs_onnx = pytest.mark.skipif(not Onnx().available().ok, reason=Onnx().available().reason)
pytestmark = needs_onnx
SIZES: Mapping[str, Any] = {**FIXED.dims}
LORA = evolve(Wan21(lora=Lora(rank=3, alpha=6.0)).tiny(), lora=Lora(rank=3, alpha=6.0))


ROOT = Path(__file__).parents[2]
REST = [kind for kind in KINDS if kind not in ("fixed", "causal fixed")]


def moved(spec: Wan21 | Far, seed: int) -> FlowMap:
    """Another student of the same shape: every trained tensor is another one."""
    u = shaken(spec)
    with torch.no_grad():
        for k, p in enumerate(u.parameters() if spec.lora is None else u.trained().values()):
            p += 0.05 * Rng.seeded(seed, k).noise_like(p)
    return u


def initialisers(path: Path) -> dict[str, bytes]:
    import onnx as library

    model = library.load(str(path))
    return {i.name: library.numpy_helper.to_array(i).tobytes() for i in model.graph.initializer}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    flowmap.export(student("fixed")[0], "onnx", out, sizes=SIZES, rollouts=(1,))
    return out


# ---------------------------------------------------------------------- the map
@pytest.mark.parametrize(
    "kind", ["fixed", "causal fixed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in REST)]
)
def test_every_trained_tensor_reaches_its_initialiser(kind: str, tmp_path: Path) -> None:
    """In one graph at least: that which encodes a finished chunk does not need the head."""
    u, _, _ = student(kind)
    reached: set[int] = set()
    for name, (graph, made) in traced(kind).items():
        onnx.write(made, graph, tmp_path / f"{name}.onnx")
        held, state = weights.read(tmp_path, name), graph.module.state_dict()
        assert held.keys() == state.keys()
        there_is = {key for key, h in held.items() if h.initialiser is not None}
        assert there_is == weights.used(made)
        there = initialisers(tmp_path / f"{name}.onnx")
        assert all(there[held[key].initialiser or ""] == bytes(weights.raw(state[key])) for key in there_is)
        reached |= {state[key].data_ptr() for key in there_is}
    trained = {name: p for name, p in u.net.named_parameters() if "delta_emb_gate" not in name}
    assert len(trained) > 70 and {name for name, p in trained.items() if p.data_ptr() not in reached} == set()


class Small(nn.Module):
    """What an optimiser of graphs would fold, merge or drop: zeros, ones, equal tensors, tied ones, a transpose."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, dtype=dtype), nn.Linear(4, 4, dtype=dtype)
        self.tied = nn.Linear(4, 4, dtype=dtype)
        self.tied.weight = self.a.weight
        self.gain, self.shift = nn.Parameter(torch.ones(4, dtype=dtype)), nn.Parameter(torch.zeros(4, dtype=dtype))
        self.again = nn.Parameter(torch.ones(4, dtype=dtype))
        self.like = nn.Parameter(torch.zeros(1, 4, dtype=dtype))
        self.idle = nn.Parameter(torch.zeros(4, dtype=dtype))
        nn.init.zeros_(self.a.bias)
        nn.init.zeros_(self.b.bias)
        self.register_buffer("table", torch.eye(4, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        h = self.tied(self.b(self.a(x)) * self.gain + self.shift) * self.again + torch.zeros_like(self.like)
        return h @ self.table


def small(dtype: torch.dtype = torch.float32) -> tuple[Graph, ExportedProgram]:
    graph = Graph("small", Small(dtype), (Input("x", ("batch", 4), dtype, "z"),), "u")
    return graph, program(graph, ShapeProfile({"batch": 2}), dtype, CPU)


def other(dtype: torch.dtype = torch.float32) -> Small:
    net = Small(dtype)
    with torch.no_grad():
        for k, p in enumerate(net.parameters()):
            p.copy_(Rng.seeded(3, k).noise_like(p))
    return net


def placed(folder: Path, net: nn.Module) -> dict[str, Tensor]:
    state = net.state_dict()
    return {h.initialiser: state[name] for name, h in weights.read(folder, "small").items() if h.initialiser}


def run(path: Path, x: Tensor) -> Tensor:
    import onnxruntime

    return torch.from_numpy(onnxruntime.InferenceSession(str(path)).run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("inline", [onnx.INLINE, 0], ids=["in the file", "beside it"])
def test_tensors_that_look_like_constants_can_be_others(
    inline: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "INLINE", inline)
    graph, traced_small = small()
    path, x = tmp_path / "small.onnx", Rng.seeded(1).noise_like(torch.empty(2, 4))
    onnx.write(traced_small, graph, path)
    assert (tmp_path / "small.onnx.data").is_file() == (not inline)
    torch.testing.assert_close(run(path, x), graph.module(x), atol=1e-6, rtol=1e-6)
    where = {name: h.initialiser for name, h in weights.read(tmp_path, "small").items()}
    idle = {"idle", "like", "a.weight"}  # not read, read for its shape, and tied to another one's name
    assert where == {name: None if name in idle else name for name in graph.module.state_dict()}
    net = other()
    weights.fill(path, placed(tmp_path, net))
    torch.testing.assert_close(run(path, x), net(x), atol=1e-6, rtol=1e-5)


def test_bf16(tmp_path: Path) -> None:
    graph, traced_small = small(torch.bfloat16)
    path = tmp_path / "small.onnx"
    onnx.write(traced_small, graph, path)
    net = other(torch.bfloat16)
    weights.fill(path, wanted := placed(tmp_path, net))
    assert dict(weights.contents(path, {*wanted})) == {name: weights.raw(t) for name, t in wanted.items()}


def test_a_map_or_a_file_with_a_hole_is_seen(tmp_path: Path) -> None:
    import onnx as library

    graph, traced_small = small()
    path = tmp_path / "small.onnx"
    onnx.write(traced_small, graph, path)
    held, state, names = weights.read(tmp_path, "small"), traced_small.state_dict, weights.used(traced_small)
    weights.require_complete(path, held, state, names)
    hole = {name: h for name, h in held.items() if name != "b.bias"}
    with pytest.raises(ExportError, match=r"the weight map has no 'b\.bias', which the network computes with"):
        weights.require_complete(path, hole, state, names)
    crossed = {**held, "gain": held["shift"]}
    with pytest.raises(ExportError, match="the initialiser 'shift' does not hold what the network does"):
        weights.require_complete(path, crossed, state, names)
    with pytest.raises(errors.CorruptError, match="has no initialiser 'nobody': export again"):
        weights.fill(path, {"nobody": torch.zeros(1)})
    model = library.load(str(path))
    kept = [i for i in model.graph.initializer if i.name != "shift"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    library.save(model, str(path))
    with pytest.raises(ExportError, match="has no initialiser 'shift', which the network computes with"):
        weights.require_complete(path, held, state, names)


# ---------------------------------------------------------------------- other weights
def test_refit_is_the_export_of_the_other_student(exported: Path, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in exported.iterdir()}
    new, out = moved(ONE, 9), tmp_path / "new"
    report = flowmap.export.refit(exported, new, out)
    assert report.worst is not None and report.worst < 1e-5
    fresh = flowmap.export(new, "onnx", tmp_path / "fresh", sizes=SIZES, rollouts=(1,)).manifest
    assert (out / "one_chunk.onnx").read_bytes() == (tmp_path / "fresh" / "one_chunk.onnx").read_bytes()
    assert {p.name: p.read_bytes() for p in exported.iterdir()} == before
    old, made = Manifest.read(exported), Manifest.read(out)
    assert made.weights == fresh.weights != old.weights == made.refitted
    assert made.graphs == old.graphs == fresh.graphs and made.files.keys() == old.files.keys()
    _, family, asked = student("fixed")
    z, cond = family.example(new, asked.usual(), Rng.seeded(3))
    torch.testing.assert_close(
        sample(flowmap.export.flow_map(out), z, cond, 4), sample(new, z, cond, 4), atol=1e-5, rtol=1e-5
    )


def test_adapters_are_swapped(exported: Path, tmp_path: Path) -> None:
    """W = W0 + s B A of the new adapters, and nothing else changes."""
    first, second = moved(LORA, 1), moved(LORA, 2)
    flowmap.export.refit(exported, first, tmp_path / "first", rollouts=(1,))
    flowmap.export.refit(tmp_path / "first", second, tmp_path / "second", rollouts=(1,))
    flowmap.export(second, "onnx", tmp_path / "fresh", sizes=SIZES, rollouts=(1,))
    a, b, fresh = (initialisers(tmp_path / name / "one_chunk.onnx") for name in ("first", "second", "fresh"))
    assert b == fresh
    layers = {name.rpartition(".lora_")[0] for name in second.trained()}
    renamed = {f"{name.replace('condition_embedder', 'condition')}.weight" for name in layers}
    assert {name for name in a if a[name] != b[name]} == renamed


KILLED = """
import flowmap
from tests.export.students import ONE
from tests.export.test_refit import moved
flowmap.export.refit("OLD", moved(ONE, 9), "NEW", rollouts=(1,))
"""


def test_one_that_is_killed_is_not_there(exported: Path, tmp_path: Path) -> None:
    code = KILLED.replace("OLD", str(exported)).replace("NEW", str(tmp_path / "new"))
    fault = {**os.environ, "FLOWMAP_FAULT": "export.refitted"}
    assert subprocess.run([sys.executable, "-c", code], env=fault, cwd=ROOT).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".tmp-new-") and not (left / "manifest.json").exists()


@pytest.mark.slow
def test_a_causal_student_too(tmp_path: Path) -> None:
    u, _, asked = student("causal fixed")
    spec = evolve(CAUSAL, partition=(1,) * 5)
    flowmap.export(u, "onnx", tmp_path / "old", sizes={**asked.dims}, rollouts=(1,))
    report = flowmap.export.refit(tmp_path / "old", moved(spec, 5), tmp_path / "new", rollouts=(1, 3))
    assert report.worst is not None and report.worst < 1e-5
    for file in ("step.onnx", "encode.onnx", "compress.onnx"):
        assert (tmp_path / "old" / file).read_bytes() != (tmp_path / "new" / file).read_bytes()


def test_weights_that_do_not_arrive_are_seen(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: Onnx, folder: Path, built: Any, manifest: Any, tensors: dict[str, Tensor]) -> None:
        tensors.pop("blocks.1.attn2.to_v.weight")
        weights.fill(folder / built.file, tensors)

    monkeypatch.setattr(Onnx, "refit", forgetful)
    with pytest.raises(errors.ParityError, match="the export is not the student"):
        flowmap.export.refit(exported, moved(ONE, 9), tmp_path / "new", rollouts=(1,))
    assert not list(tmp_path.iterdir())


def test_a_network_of_no_plugin(tmp_path: Path) -> None:
    first, second = Own().eval(), Own().eval()
    example = Rng.seeded(1).noise_like(torch.empty(2, 2, 3, 4, 4)), {"text": torch.ones(2, 4)}
    flowmap.export(first, "onnx", tmp_path / "old", example=example, rollouts=(1,))
    with pytest.raises(ExportError, match=r"was exported from an example, .* give it again"):
        flowmap.export.refit(tmp_path / "old", second, tmp_path / "new")
    report = flowmap.export.refit(tmp_path / "old", second, tmp_path / "new", example=example, rollouts=(1,))
    assert report.worst is not None and report.worst < 1e-5
    assert report.manifest.weights != report.manifest.refitted


class Own(FlowMap):
    """A third party's network."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.text = nn.Linear(4, 4), nn.Linear(4, 4)
        self.requires_grad_(False)

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Any = None) -> Latent:
        return self.mix(z) * (t + r)[:, None, None, None, None] + self.text(cond["text"])[:, None, None, None]


class Constant(Own):
    """With what a tracer writes into a graph, and no state dict has."""

    def __init__(self, gain: float = 1.0, mean: float = 0.0, scale: float = 1.0, hidden: float = 1.0) -> None:
        super().__init__()
        self.gain, self.scale, self.hidden = gain, torch.tensor([scale]), [hidden]
        self.register_buffer("mean", torch.full((4,), mean), persistent=False)
        self.drop = nn.Dropout(gain / 4)  # of training alone

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Any = None) -> Latent:
        x = self.drop(super().forward(z, t, r, cond)) * self.gain
        return (x + self.mean) * self.scale * self.hidden[0]


def test_what_a_graph_holds_as_constants_is_compared(tmp_path: Path) -> None:
    example = Rng.seeded(1).noise_like(torch.empty(2, 2, 3, 4, 4)), {"text": torch.ones(2, 4)}
    old, new = tmp_path / "old", tmp_path / "new"
    flowmap.export(Constant().eval(), "onnx", old, example=example, rollouts=(1,))
    for changed, said in (
        ({"gain": 1 + 1e-6}, r"u\.gain of the new student is 1\.000001, that of .* is 1\.0, and is a constant"),
        ({"mean": 1e-6}, r"u\.mean of the new student holds other values than that of "),
        ({"scale": 1 + 1e-6}, r"u\.scale of the new student holds other values than that of "),
    ):
        with pytest.raises(ExportError, match=said):
            flowmap.export.refit(old, Constant(**changed).eval(), new, example=example, rollouts=(1,))
    with pytest.raises(errors.ParityError):  # in a list, where nobody looks
        flowmap.export.refit(old, Constant(hidden=2.0).eval(), new, example=example, rollouts=(1,))
    with pytest.raises(ExportError, match=r"its refit is always compared with it, leave check=False out"):
        flowmap.export.refit(old, Constant().eval(), new, example=example, check=False)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    u = Constant().eval()
    u.drop.p = 0.5
    flowmap.export.refit(old, u, new, example=example, rollouts=(1,))
    (again := tmp_path / "again").mkdir()
    for file in new.iterdir():
        (again / file.name).write_bytes(file.read_bytes())
    (again / CONSTANTS).unlink()
    files = json.loads((again / "manifest.json").read_text())["files"]
    del files[CONSTANTS]
    change(again, files=files)
    with pytest.raises(ExportError, match=r"has no constants\.json, an older flowmap wrote it: export again"):
        flowmap.export.refit(again, u, tmp_path / "third", example=example)


# ---------------------------------------------------------------------- what does not fit
WIDER = {**TINY, "ffn_dim": 2 * TINY["ffn_dim"]}


@pytest.mark.parametrize(
    "new, said",
    [
        (lambda: shaken(evolve(ONE, config={**TINY, "num_layers": 1})), "num_layers of the new student is 1, that of "),
        (
            lambda: shaken(evolve(ONE, config=WIDER)),
            r"proj\.weight of the new student is \(96, 24\), that of .* is \(48, 24\)",
        ),
        (
            lambda: shaken(evolve(ONE, gamma=0.5)),
            "gamma of the new student is 0.5, that of .* is 0.25: export it again",
        ),
        (lambda: shaken(evolve(ONE, config={**TINY, "eps": 1e-5})), "^eps of the new student is 1e-05, that of"),
        (lambda: shaken(ONE).to(torch.bfloat16), "of the new student is bfloat16, that of .* is float32"),
        (lambda: student("causal fixed")[0], r"of a 'wan' network, and a FarFlowMap is none: export it"),
    ],
    ids=["layers", "width", "gamma", "eps", "dtype", "family"],
)
def test_another_architecture(new: Any, said: str, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        flowmap.export.refit(exported, new(), tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    (folder := tmp_path / "copy").mkdir()
    for file in exported.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change(copy: Path, **changes: Any) -> None:
    file = copy / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_what_cannot_be_refitted(copy: Path, tmp_path: Path) -> None:
    u, out = student("fixed")[0], tmp_path / "new"
    with pytest.raises(FileNotFoundError, match="there is no such directory"):
        flowmap.export.refit(copy / "never", u, out)
    with pytest.raises(ExportError, match="is there already"):
        flowmap.export.refit(copy, u, copy)
    change(copy, to="torch-export")
    with pytest.raises(ExportError, match="torch-export has its weights inside what it compiled: export the student"):
        flowmap.export.refit(copy, u, out)
    change(copy, to="onnx", precision="fp8")
    with pytest.raises(ExportError, match="fp8 has ranges that were measured on its student"):
        flowmap.export.refit(copy, u, out)
    change(copy, precision="float32", family="martian")
    with pytest.raises(ExportError, match="of a 'martian' network, which no plugin here knows"):
        flowmap.export.refit(copy, u, out)
    change(copy, graphs=[])
    with pytest.raises(ExportError, match=r"an? onnx export is files for other programs"):
        flowmap.export.refit(copy, u, out)
    assert not out.exists()


def test_a_file_that_is_not_the_one_that_was_written(copy: Path, tmp_path: Path) -> None:
    (copy / WEIGHTS).write_text((copy / WEIGHTS).read_text().replace("blocks.0", "blocks.9", 1))
    with pytest.raises(errors.CorruptError, match=r"weights\.json: its content is not what was written"):
        flowmap.export.refit(copy, student("fixed")[0], tmp_path / "new")


def test_an_export_of_an_older_flowmap(copy: Path, tmp_path: Path) -> None:
    (copy / WEIGHTS).unlink()
    files = json.loads((copy / "manifest.json").read_text())["files"]
    del files[WEIGHTS]
    change(copy, files=files)
    with pytest.raises(ExportError, match=r"has no weights\.json, an older flowmap wrote it: export again"):
        flowmap.export.refit(copy, student("fixed")[0], tmp_path / "new")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, u in (("a", shaken(DIGITS)), ("b", moved(DIGITS, 4))):
        DIGITS.save(u, tmp_path / name)
    sizes = ["--sizes", "frames=3", "height=4", "width=4", "text=12"]
    old, new = str(tmp_path / "old"), ["export", str(tmp_path / "b"), "--refit", str(tmp_path / "old")]
    assert main(["export", str(tmp_path / "a"), "--to", "onnx", *sizes, "--out", old, "--refittable"]) == 0
    assert Manifest.read(tmp_path / "old").options == {"refittable": True}
    assert main([*new, "--out", str(tmp_path / "new")]) == 0
    assert "largest error beside the student: " in capsys.readouterr().out
    made = Manifest.read(tmp_path / "new")
    assert made.refitted == Manifest.read(tmp_path / "old").weights != made.weights
    assert made.source == "b"
    for more, said in (
        ([], "the following arguments are required: --out"),
        (["--out", "x", "--precision", "bf16"], "--precision cannot be given with --refit"),
        (["--out", "x", "--to", "onnx"], "--to cannot be given with --refit"),
        (["--out", str(tmp_path / "new")], "is there already"),
    ):
        assert main([*new, *more]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_cannot_be_compared_here_is_refused_before_anything_is_loaded(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"sizes": SIZES, "rollouts": (1,)}
    monkeypatch.setattr(api, "loaded", lambda *more: pytest.fail("the student was looked at"))
    monkeypatch.setattr(refit, "loaded", api.loaded)
    there = Target("cuda")
    with pytest.raises(errors.NoDeviceError, match=r"compared with the student on one, and there is none .*--no-check"):
        flowmap.export(student("fixed")[0], "onnx", tmp_path / "out", target=there, **asked)
    with pytest.raises(ExportError, match=r"onnx in bf16 does not run on a CPU, .*--no-check"):
        flowmap.export(student("fixed")[0], "onnx", tmp_path / "out", precision="bf16", **asked)
    with pytest.raises(errors.NoDeviceError, match="there is none here: write it unseen"):
        Onnx().check_refit(Manifest.read(exported), Asked(target=there))
    Onnx().check(Asked(target=there, check=False))
    Onnx().check(Asked("bf16", check=False))


@pytest.mark.parametrize(
    "to, more, said",
    [
        (
            "torch-export",
            ["--capability", "8.9"],
            "torch-export is not built for GPUs that are named: leave the compute",
        ),
        ("onnx", ["--capability", "8.9"], "onnx is not built for GPUs that are named"),
        ("torch-export", ["--refittable"], "torch-export has no option 'refittable'; it has none"),
        ("onnx", ["--weight-streaming"], "onnx has no option 'weight_streaming'; it has refittable"),
        ("aoti", ["--strip"], "aoti has no option 'strip'"),
    ],
)
def test_an_option_that_a_back_end_does_not_have(
    to: str, more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Is refused, before the student is looked at; none is passed over in silence."""
    DIGITS.save(shaken(DIGITS), tmp_path / "student")
    assert main(["export", str(tmp_path / "student"), "--to", to, "--out", str(tmp_path / "out"), *more]) == 2
    assert said in capsys.readouterr().err
