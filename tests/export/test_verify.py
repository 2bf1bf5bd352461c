"""parity.json and latency.json: what is compared and timed, and that no defect of any piece goes by."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_wan.export import OneChunkFamily
from torch import Tensor, nn

from flowmap import Rng, sample
from flowmap.cli import main
from flowmap.export import latency as timing
from flowmap.export import narrowing as cost
from flowmap.export.errors import ParityError
from flowmap.export.graph import Call
from flowmap.export.latency import COMPILED, latency
from flowmap.export.runner import ExportedFlowMap
from flowmap.export.verify import LIMITS, TIMES, Parity, corners, parity, relative
from flowmap.kernels import compiler
from tests.export.students import CAUSAL_RANGES, CPU, RANGES, runner, shaken, student
from tests.export.test_api import DIGITS

ONES = ("ranges", "causal ranges", "causal small past")


class Codec:
    """Frames that are the latents, but where something is planted."""

    def __init__(self) -> None:
        self.seen = 0

    def decode(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x.tanh()


def calls(kind: str) -> dict[str, Call]:
    """The graphs, not built: what a perfect back end makes of them."""
    u, family, _ = student(kind)
    return {graph.name: graph.module for graph in family.graphs(u)}


def measured(kind: str, made: Mapping[str, Call], codec: Any = None) -> Parity:
    u, family, asked = student(kind)
    return parity(u, runner(kind, made), family, asked, "float32", (1, 3), codec=codec)


@pytest.mark.parametrize("kind", ONES)
def test_what_is_compared(kind: str) -> None:
    """Single calls at every (t, r) and a rollout at the usual, least and most sizes; videos and frames, too."""
    codec = Codec()
    found = measured(kind, calls(kind), codec)
    found.require()
    asked = RANGES if kind == "ranges" else CAUSAL_RANGES
    ends = corners(asked)
    assert len(ends) == 3
    assert ends[1] == {n: r.least for n, r in asked.dims.items()} != {n: r.most for n, r in asked.dims.items()}
    for sizes in ends:
        there = [m.what for m in found.measured if m.sizes == sizes]
        alone = [what for what in there if what.startswith("u(t=") and "chunk" not in what]
        assert len(alone) == len(TIMES) and any("step" in what for what in there)
        assert any("of chunk 5" in what for what in there) == kind.startswith("causal")
    what = {m.what for m in found.measured}
    chunks = "" if kind == "ranges" else " in 5 chunks"
    assert what >= {f"{n}{chunks}" for n in ("1 step", "3 steps", "frames of 1 step", "frames of 3 steps")}
    assert codec.seen == 4


def wrong(call: Call, where: Callable[..., bool] = lambda *args: True) -> Call:
    """Off by a thousandth of itself in one channel, where `where`."""

    def made(*args: Tensor) -> Tensor:
        out = call(*args).clone()
        if where(*args):
            out[..., -1] *= 1.001
        return out

    return made


@pytest.mark.parametrize(
    "kind, piece",
    [
        ("ranges", "one_chunk"),
        ("causal ranges", "step"),
        ("causal ranges", "encode"),
        ("causal ranges", "compress"),
        ("causal small past", "compress"),
    ],
)
def test_a_defect_in_a_graph_is_seen(kind: str, piece: str) -> None:
    made = calls(kind)
    found = measured(kind, {**made, piece: wrong(made[piece])})
    with pytest.raises(ParityError, match=r"the export is not the student: .* differs by"):
        found.require()


@pytest.mark.parametrize(
    "where",
    [
        lambda z, *more: z.shape[1] == RANGES["frames"].most,
        lambda z, *more: z.shape[1] == RANGES["frames"].least,
        lambda z, *more: z.shape[0] == RANGES["batch"].most,
        lambda z, t, r, text: text.shape[1] == RANGES["text"].least,
        lambda z, t, *more: bool((t == 100.0).all()),
    ],
    ids=["most frames", "least frames", "most rows", "shortest text", "one time"],
)
def test_one_at_the_end_of_a_range_or_at_one_time_too(where: Callable[..., bool]) -> None:
    made = calls("ranges")
    assert not measured("ranges", {"one_chunk": wrong(made["one_chunk"], where)}).worst.good


@pytest.mark.parametrize("name", ["timestep", "r_timestep", "encoder_hidden_states"])
@pytest.mark.parametrize("kind, piece", [("ranges", "one_chunk"), ("causal ranges", "step")])
def test_an_input_that_is_not_read(kind: str, piece: str, name: str) -> None:
    u, family, _ = student(kind)
    inputs = next(g.inputs for g in family.graphs(u) if g.name == piece)
    k = [i.name for i in inputs].index(name)
    made = calls(kind)

    def deaf(*args: Tensor) -> Tensor:
        return made[piece](*args[:k], torch.zeros_like(args[k]), *args[k + 1 :])

    assert not measured(kind, {**made, piece: deaf}).worst.good


@pytest.mark.parametrize("piece", ["step", "encode", "compress"])
@pytest.mark.parametrize("name", ["kv", "positions"])
def test_a_history_that_is_not_read(piece: str, name: str) -> None:
    """`encode` and `compress` see what came before only where there is some."""
    u, family, _ = student("causal ranges")
    inputs = next(g.inputs for g in family.graphs(u) if g.name == piece)
    k = [i.name for i in inputs].index(name)
    made = calls("causal ranges")

    def deaf(*args: Tensor) -> Tensor:
        return made[piece](*args[:k], torch.zeros_like(args[k]), *args[k + 1 :])

    assert not measured("causal ranges", {**made, piece: deaf}).worst.good


def test_a_runner_that_forgets_the_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the graphs: what is between a sampler and a graph."""
    forward = ExportedFlowMap.forward
    monkeypatch.setattr(ExportedFlowMap, "forward", lambda self, z, t, r, c, *more: forward(self, z, r, t, c, *more))
    assert not measured("ranges", calls("ranges")).worst.good


def test_frames_of_their_own() -> None:
    """Latents that are alike in the mean, and frames that are not."""

    class Sharp(Codec):
        def decode(self, x: Tensor) -> Tensor:
            self.seen += 1
            return x.tanh() if self.seen % 2 else x.tanh() + 0.01

    worst = measured("ranges", calls("ranges"), Sharp()).worst
    assert worst.what.startswith("frames of") and not worst.good


def test_what_is_not_a_number_is_not_good() -> None:
    made = calls("ranges")
    worst = measured("ranges", {"one_chunk": lambda *args: made["one_chunk"](*args) * float("nan")}).worst
    assert not worst.good and worst.error != worst.error
    assert {*LIMITS} == {"float32", "fp16", "bf16", "fp8"}


# ---------------------------------------------------------------------- float32
def test_what_a_narrow_type_costs_is_beside_the_student_in_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The export and a narrow copy of the student agree far better than either with the student itself."""
    DIGITS.save(shaken(DIGITS), tmp_path / "student")
    asked = ["--precision", "bf16", "--sizes", "frames=3", "height=4", "width=4", "text=12"]
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "student"), "--to", "torch-export", *asked, "--out", str(out)]) == 0
    found = json.loads((out / "parity.json").read_text())
    assert found["beside"] == "the student in bfloat16" and found["narrowing"]["beside"] == "the student in float32"
    lost, narrow = found["narrowing"]["worst"], DIGITS.load(tmp_path / "student", device=CPU, dtype=torch.bfloat16)
    assert found["worst"]["error"] < 1e-4 < 1e-3 < lost < 0.1
    wide = DIGITS.load(tmp_path / "student", device=CPU, dtype=torch.float32)
    z, cond = OneChunkFamily().example(
        wide, {"batch": 1, "frames": 3, "height": 4, "width": 4, "text": 12}, Rng.seeded(12)
    )
    for n, what in ((1, "1 step"), (4, "4 steps")):
        ours, theirs = (sample(net, z, cond, n) for net in (narrow, wide))
        assert found["narrowing"]["errors"][what] == pytest.approx(relative(ours, theirs), rel=0.05)
    said = capsys.readouterr().out
    assert "largest error beside the student in bf16: " in said
    assert f"largest error beside the student in float32: {lost:.1e} relative" in said


def test_where_it_is_not_measured_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    u, family, asked = student("fixed")
    more = family, asked.usual(), (1,), 1.0
    assert cost.narrowing(u, u, None, *more) == cost.Narrowing({}, cost.UNKNOWN)
    assert cost.narrowing(u, u, lambda: u, *more).worst == 0.0
    monkeypatch.setattr(cost, "room", lambda device: 1 << 10)
    assert cost.narrowing(u, u, lambda: pytest.fail("was loaded"), *more) == cost.Narrowing({}, cost.NO_ROOM)


# ---------------------------------------------------------------------- latency
def timed(**asked: Any) -> dict[str, Any]:
    u, family, sizes = student("fixed")
    return latency({"eager": u, "export": runner("fixed", calls("fixed"))}, family, u, sizes.usual(), 2, **asked)


@pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
def test_eager_compiled_and_exported_side_by_side() -> None:
    u, _, _ = student("fixed")
    found = timed(compile=True)
    assert {*found["seconds"]} == {"eager", "export", COMPILED} and not found["not measured"]
    for each in found["seconds"].values():
        assert {*each} == {"call", "4 steps"} and all(value > 0 for value in each.values())
    assert found["threads"] == torch.get_num_threads()
    assert all(block._compiled_call_impl is None for block in u.blocks)  # the student itself is as it was


def test_what_is_not_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "only where it is asked for: compile=True, --compile" in timed()["not measured"][COMPILED]
    assert timed(compile=False)["not measured"] == {COMPILED: "not asked for"}

    def refuse(module: nn.Module) -> None:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(timing, "compiled", evolve)  # never reached
    monkeypatch.setattr(timing, "compiler", lambda: None)
    assert "needs a C++ compiler: install g++" in timed(compile=True)["not measured"][COMPILED]
    monkeypatch.undo()
    monkeypatch.setattr(timing, "compiler", lambda: "g++")
    monkeypatch.setattr(nn.Module, "compile", refuse)
    found = timed(compile=True)
    assert found["not measured"] == {COMPILED: "RuntimeError: no such instruction"}
    assert {*found["seconds"]} == {"eager", "export"}
