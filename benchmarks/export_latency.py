"""Seconds, memory and accuracy of one step and of four, of Wan2.1 1.3B's architecture at 81 frames and 480 × 832.

    python -m benchmarks.export_latency --out benchmarks/results --minutes 8      # on one CUDA GPU
    python -m benchmarks.export_latency --out DIR --tiny                          # the same path; means nothing

Random weights, bfloat16, one video, no guidance, as a distilled student samples: diffusers' own transformer, the
student as it trains, the graph that is exported, the graph through torch.compile, through AOTInductor, and through
torch-tensorrt where that can be imported. Errors are relative to the same weights in float32, so that eager bfloat16
is the measure of what bfloat16 costs. Every case is built in the order above; results are written after each, and
none is begun that the minutes left do not allow.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch
from attrs import define, field
from flowmap_wan import WanSpec
from flowmap_wan.build import flow_map
from flowmap_wan.export import OneChunkFamily
from flowmap_wan.sizes import LATENT, T2V_1_3B, TEXT
from flowmap_wan21 import Wan21
from torch import Tensor

from flowmap import FlowMap
from flowmap.atomic import write_text
from flowmap.export.graph import lint, program
from flowmap.export.spec import ShapeProfile
from flowmap.times import euler_grid

from .large_step_report import hardware

Call: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # z, timestep, r_timestep [B, F], text
TIMES = ((1000.0, 750.0), (600.0, 0.0), (300.0, 300.0))
STEPS, SHIFT, REPEATS = 4, 5.0, 3
NEEDS = {"torch.compile": 100.0, "AOTInductor": 100.0, "TensorRT (torch-tensorrt)": 150.0}  # seconds, a guess
CASES = ("diffusers, eager", "flowmap, eager", "graph, eager", *NEEDS)


@define
class Bench:
    device: torch.device
    dtype: torch.dtype
    deadline: float
    net: Any
    u: FlowMap
    exact: FlowMap
    z: Tensor
    text: Tensor
    made: dict[str, Any] = field(factory=dict)

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, tiny: bool, deadline: float) -> Bench:
        from diffusers import AnyFlowTransformer3DModel

        spec: WanSpec = Wan21(lora=None)
        spec = spec.tiny() if tiny else Wan21(lora=None, config=dict(T2V_1_3B))
        torch.manual_seed(0)
        with torch.device(device):
            net = AnyFlowTransformer3DModel(**spec.config, gate_value=spec.gamma, deltatime_type="r").eval()
        for name, p in net.named_parameters():  # what diffusers keeps in float32 when it loads such a model
            p.requires_grad_(False)
            if not any(kept in name for kept in AnyFlowTransformer3DModel._keep_in_fp32_modules or ()):
                p.data = p.data.to(dtype)
        u, exact = (
            flow_map(spec, own, "student", two_times=True, student=True)
            for own in (copy.deepcopy(net), copy.deepcopy(net).float())
        )
        shape = (3, 4, 8, 8) if tiny else LATENT
        text = (spec.text_length, int(spec.config["text_dim"])) if tiny else TEXT
        z, embeddings = (torch.randn(1, *s, device=device) for s in (shape, text))
        return cls(device, dtype, deadline, net, u, exact, z, embeddings)

    # ------------------------------------------------------------------ the cases
    def call(self, name: str) -> Call:
        """Built, and ready to be called."""
        match name:
            case "diffusers, eager":
                return lambda z, t, r, text: self.net(z.to(self.dtype), t, r, text.to(self.dtype), return_dict=False)[0]
            case "flowmap, eager":
                return flow_map_call(self.u)
            case "graph, eager":
                return self.graph().module
            case "torch.compile":
                return torch.compile(self.graph().module)
            case "AOTInductor":
                return self.aoti()
            case _:
                return self.tensorrt()

    def graph(self) -> Any:
        if "graph" not in self.made:
            self.made["graph"] = OneChunkFamily().graphs(self.u)[0]
        return self.made["graph"]

    def program(self) -> Any:
        if "program" not in self.made:
            start = time.monotonic()
            b, f, _, h, w = self.z.shape
            sizes = {"batch": b, "frames": f, "height": h, "width": w, "text": self.text.shape[1]}
            traced = program(self.graph(), ShapeProfile(sizes), self.dtype, self.device)
            lint(traced)
            print(f"torch.export: {time.monotonic() - start:.0f} s, {len(traced.graph.nodes)} nodes", flush=True)
            self.made["program"] = traced
        return self.made["program"]

    def aoti(self) -> Call:
        """Code alone is compiled; the weights stay where they are."""
        from torch._inductor import aoti_compile_and_package, aoti_load_package

        traced = self.program()
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/graph.pt2"
            aoti_compile_and_package(
                traced, package_path=file, inductor_configs={"aot_inductor.package_constants_in_so": False}
            )
            print(f"AOTInductor: {Path(file).stat().st_size / 2**20:.1f} MiB of code", flush=True)
            module = aoti_load_package(file)
        weights = {**traced.state_dict, **traced.constants}
        names = module.get_constant_fqns()
        module.load_constants({n: weights[n] for n in names}, check_full_update=True, user_managed=True)
        return lambda *args: module(*args)

    def tensorrt(self) -> Call:
        import torch_tensorrt

        traced = self.program()
        args = (self.z, *self.times(0.9, 0.4), self.text)
        made = torch_tensorrt.dynamo.compile(traced, inputs=list(args), require_full_compilation=True, min_block_size=1)
        return lambda *args: made(*args)

    # ------------------------------------------------------------------ the measurements
    def times(self, t: float, r: float) -> tuple[Tensor, Tensor]:
        shape = self.z.shape[:2]
        return (torch.full(shape, 1000 * t, device=self.device), torch.full(shape, 1000 * r, device=self.device))

    def walk(self, call: Call) -> Tensor:
        z, grid = self.z, euler_grid(STEPS, SHIFT).tolist()
        for t, r in pairwise(grid):
            z = z - (t - r) * call(z, *self.times(t, r), self.text).float()
        return z

    def reference(self) -> None:
        """In float32: one call at each of `TIMES`, and the walk."""
        call = flow_map_call(self.exact)
        self.made["calls"] = [call(self.z, *self.times(t / 1000, r / 1000), self.text) for t, r in TIMES]
        self.made["walk"] = self.walk(call)
        del self.exact

    def measure(self, name: str) -> dict[str, Any]:
        case: dict[str, Any] = {"case": name}
        if name.startswith("TensorRT") and find_spec("torch_tensorrt") is None:
            return {**case, "outcome": "not measured: torch-tensorrt is not installed"}
        if (left := self.deadline - time.monotonic()) < NEEDS.get(name, 0.0):
            return {**case, "outcome": f"not measured: {left:.0f} s were left"}
        torch._dynamo.reset()
        self.empty()
        before = self.used()
        try:
            start = time.monotonic()
            call = self.call(name)
            first = [call(self.z, *self.times(t / 1000, r / 1000), self.text) for t, r in TIMES]
            self.synchronise()
            case["build_and_first_calls_s"] = time.monotonic() - start
            case["error_of_calls"] = [relative(a, b) for a, b in zip(first, self.made["calls"], strict=True)]
            at = (*self.times(0.9, 0.4), self.text)
            case["step_s"] = self.fastest(lambda: call(self.z, *at))
            case[f"{STEPS}_steps_s"] = self.fastest(lambda: self.walk(call))
            case[f"error_of_{STEPS}_steps"] = relative(self.walk(call), self.made["walk"])
        except Exception as error:  # the next case may well work
            return {**case, "outcome": f"failed: {type(error).__name__}: {str(error).strip()[:500]}"}
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        return {**case, "outcome": "measured", "peak_bytes": peak, "bytes_before": before}

    def fastest(self, run: Callable[[], object]) -> list[float]:
        """Seconds of each of a few runs, or of one where time runs out."""
        found: list[float] = []
        while len(found) < REPEATS and (not found or time.monotonic() + found[-1] < self.deadline):
            start = time.perf_counter()
            run()
            self.synchronise()
            found.append(time.perf_counter() - start)
        return found

    def used(self) -> int | None:
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else None

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def empty(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def flow_map_call(u: FlowMap) -> Call:
    return lambda z, t, r, text: u(z, t[:, 0] / 1000, r[:, 0] / 1000, {"text": text})


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def write(out: Path, cases: Sequence[Mapping[str, Any]], *, tiny: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": "export_latency", "tiny": tiny, "hardware": hardware(), "cases": list(cases)}
    write_text(out / "export_latency.json", json.dumps(record, indent=2) + "\n")
    machine = record["hardware"]
    lines = [
        "# A step of Wan2.1 1.3B at 81 frames and 480 × 832, as a distilled student takes it",
        "",
        *(["**A tiny network: these numbers mean nothing.**", ""] if tiny else []),
        f"One {machine['gpu'] or machine['cpu'] + ', no GPU'}; torch {machine['torch']}, CUDA {machine['cuda']}.",
        "Random weights, bfloat16, batch 1, 512 positions of text. Seconds are the least of three;",
        "errors are relative to float32.",
        "",
        f"| | a step | {STEPS} steps | error of a call | of {STEPS} steps | peak memory | to build |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        if case["outcome"] != "measured":
            lines.append(f"| {case['case']} | {case['outcome']} | | | | | |")
            continue
        peak = "–" if case["peak_bytes"] is None else f"{case['peak_bytes'] / 2**30:.1f} GiB"
        lines.append(
            f"| {case['case']} | {min(case['step_s']):.3f} s | {min(case[f'{STEPS}_steps_s']):.3f} s "
            f"| {max(case['error_of_calls']):.1e} | {case[f'error_of_{STEPS}_steps']:.1e} | {peak} "
            f"| {case['build_and_first_calls_s']:.0f} s |"
        )
    write_text(out / "export_latency.md", "\n".join(lines) + "\n")


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--minutes", type=float, default=8.0, help="no case is begun that would go beyond")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, on the CPU where there is no GPU")
    parser.add_argument("--only", help="cases whose name holds this, such as eager")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("there is no CUDA GPU here: this measures one; --tiny runs anywhere")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench.of(device, torch.bfloat16 if device.type == "cuda" else torch.float32, options.tiny, deadline)
    print("the network is there", flush=True)
    bench.reference()
    print("the reference in float32 is there", flush=True)
    found: list[dict[str, Any]] = []
    for name in CASES:
        if options.only is None or options.only in name:
            found.append(bench.measure(name))
            print(json.dumps(found[-1]), flush=True)
            write(options.out, found, tiny=options.tiny)


if __name__ == "__main__":
    main()
