"""Seconds and memory of a training iteration of Wan2.1 1.3B at 81 frames and 480 × 832, on one CUDA GPU.

    python -m benchmarks.large_step --out benchmarks/results --minutes 8
    python -m benchmarks.large_step --out DIR --tiny            # the same path through the code; means nothing

Random weights: time and memory do not depend on them. LoRA of rank 256 on a bfloat16 base, activation checkpointing,
two samples a GPU, as in the published measurement (a batch of 16 on 8 H100). Cases go from cheap to dear; results are
written after each, so that a kill loses nothing, and a case that the minutes left do not allow is not begun.

An iteration is not always the same work: stage 2 makes two or three jumps, a causal student trains on three to eight
chunks. Each kind is timed on its own, and the mean is that of the recipe's draws.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import define, evolve, field, frozen
from flowmap_far import Far
from flowmap_wan import Lora, WanSpec
from flowmap_wan.sizes import LATENT, T2V_1_3B, TEXT
from flowmap_wan21 import Wan21

from flowmap import AdamW, Ema, FlowMap, Rng, Stage, TensorData
from flowmap._types import Cache, Cond, Latent, Role, Time
from flowmap.guidance import Exact
from flowmap.method import Method, Update
from flowmap.methods import anyflow
from flowmap.methods.flow_matching import flow_matching
from flowmap.model import Wrapped
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.rollout import walk
from flowmap.times import Diagonal, Triangle, euler_grid
from flowmap.training.loop import Trainer

from . import large_memory
from . import large_step_report as report

SHIFT, GUIDANCE, REPEATS, LONG_ENOUGH = 5.0, 3.0, 3, 20.0  # of one kind: repeats at most, seconds that are enough
JUMPS = {2: 0.3833, 3: 0.6167}  # share of iterations with so many; E[calls] = 3 - 2 / n over n in (2, 4, 8, 16, 50)
PREFIX = {3: 7 / 12, 6: 5 / 12}  # chunks; 6 has within 2 % the mean number of tokens of 4 to 8
WHOLE = {0: 1.0}
PUBLISHED = {  # arXiv:2605.13724: seconds, 8 H100, batch 16; its calls are not quite ours, see docs/large.md
    "bidirectional": {"flow matching": 9.7, "+ guidance": 12.3, "stage 1": 16.8, "stage 2": 51.2},
    "causal": {"flow matching": 5.8, "+ guidance": 7.8, "stage 1": 10.4, "stage 2": 53.1},
}


@frozen
class Jumps:
    """`FlowMapBackwardSimulation` with its number of jumps given: the middle one from 15/16 to 5/6."""

    count: int

    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent:
        corners = euler_grid(4, SHIFT)[[0, 1, 2, 4] if self.count == 3 else [0, 1, 4]]
        return walk(u, noise, cond, corners.to(noise.device), rng)


class Prefix(Wrapped):
    """`u`, trained on the first so many chunks."""

    def __init__(self, u: FlowMap, chunks: int) -> None:
        super().__init__(u)
        self.count = chunks

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        out: Latent = self.u(z, t, r, cond, cache)
        return out

    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        clean = sum(self.u.chunks(x.shape[1])[: self.count - 1])
        draws = (self.u.teacher_forcing(x, cond, Rng.seeded(k)) for k in range(1000))
        return next((z, c) for z, c in draws if "history" in c and c["history"].shape[1] == clean)


@frozen
class Case:
    """kinds: of iterations, by number of jumps for a stage 2, and their shares. calls: "ours", or the reference's."""

    name: str
    student: str
    method: Method
    spec: WanSpec
    kinds: Mapping[int, float] = WHOLE
    calls: str = "ours"
    note: str = ""
    products: str = "high"  # the precision of float32 products, the adapters': TF32

    @property
    def slug(self) -> str:
        return ", ".join(part for part in (self.student, self.name, self.calls, self.note) if part)


def cases(tiny: bool) -> Iterator[Case]:
    lora = Lora(4, 4.0) if tiny else Lora()
    sizes: dict[str, Any] = {} if tiny else {"config": dict(T2V_1_3B)}
    wan = Wan21(lora=lora, checkpointing=True, shift=SHIFT, **sizes)
    far = Far(lora=lora, checkpointing=True, shift=SHIFT, attention="spans", **sizes)
    plain = flow_matching(role="student", shift=SHIFT)
    guided = Method("guided", (Update("student", ((1.0, FlowMapMatching(Diagonal(shift=SHIFT), guidance=Exact())),)),))
    one, two = anyflow.forward(shift=SHIFT, guidance=GUIDANCE), anyflow.on_policy(shift=SHIFT, guidance=GUIDANCE)
    steps = {"flow matching": plain, "+ guidance": guided, "stage 1": one}
    yield from (Case(name, "bidirectional", method, wan) for name, method in steps.items())
    yield from (Case(name, "causal", method, far) for name, method in steps.items())
    yield Case("stage 2", "bidirectional", two, wan, JUMPS)
    yield Case("stage 2", "causal", two, far, JUMPS)
    flex = evolve(far, attention="flex")
    if not tiny:  # its kernels need a GPU and heads of 16
        yield Case("flow matching", "causal", plain, flex, note="flex attention")
        yield Case("stage 1", "causal", one, flex, note="flex attention")
    yield Case("flow matching", "bidirectional", plain, wan, note="float32 products in full", products="highest")
    yield Case("stage 1", "bidirectional", everywhere(one), wan, calls="the reference's")
    rolled = anyflow.on_policy(shift=SHIFT, guidance=GUIDANCE, share_rollout=False)
    yield Case("stage 2", "bidirectional", everywhere(rolled), wan, JUMPS, calls="the reference's")
    yield Case("stage 2", "causal", everywhere(rolled), far, JUMPS, calls="the reference's")


def everywhere(method: Method) -> Method:
    """A difference for every sample, as the reference has it, and not for those off the diagonal alone."""
    times = Triangle(diagonal=0.0, edge=0.5, shift=SHIFT)
    return replaced(method, lambda o: evolve(o, times=times) if isinstance(o, FlowMapMatching) else o)


def jumping(method: Method, jumps: int) -> Method:
    def fixed(objective: Any) -> Any:
        if isinstance(objective, DistributionMatching):
            return evolve(objective, rollout=Jumps(jumps))
        own = isinstance(objective, CriticMatching) and objective.rollout is not None
        return evolve(objective, rollout=Jumps(jumps)) if own else objective

    return replaced(method, fixed) if jumps else method


def replaced(method: Method, by: Any) -> Method:
    updates = (evolve(u, terms=tuple((weight, by(term)) for weight, term in u.terms)) for u in method.updates)
    return evolve(method, updates=tuple(updates))


@define
class Bench:
    """samples: in an iteration. deadline: of `time.monotonic`."""

    device: torch.device
    samples: int
    deadline: float
    _spec: WanSpec | None = field(default=None, init=False)
    _nets: Mapping[Role, FlowMap] = field(factory=dict, init=False)

    def measure(self, case: Case) -> dict[str, Any]:
        """Seconds by kind and their mean, samples, peak memory; in "outcome" what went wrong."""
        found: dict[str, Any] = {"case": case.name, "student": case.student, "calls": case.calls, "note": case.note}
        samples = self.samples
        while True:
            try:
                return {**found, "outcome": "measured", "samples": samples, **self._kinds(case, samples)}
            except torch.cuda.OutOfMemoryError:
                if samples == 1:
                    return {**found, "outcome": "out of memory", "samples": 1}
                samples //= 2
            except TimeoutError:
                return {**found, "outcome": "no time left"}
            except Exception as error:  # the other cases still count
                return {**found, "outcome": f"{type(error).__name__}: {error}"[:2000]}
            finally:
                self._free()

    def _kinds(self, case: Case, samples: int) -> dict[str, Any]:
        prefixes = prefixes_of(case)
        seconds: dict[str, list[float]] = {}
        mean = 0.0
        torch.set_float32_matmul_precision(case.products)
        nets = self._networks(case.spec)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for jumps, chunks in itertools.product(case.kinds, prefixes):
            name = ", ".join(f"{n} {what}" for n, what in ((jumps, "jumps"), (chunks, "chunks")) if n) or "all"
            times = seconds[name] = self._times(case, nets, samples, jumps, chunks)
            mean += case.kinds[jumps] * prefixes[chunks] * statistics.median(times)
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        return {"seconds": mean, "by_kind": seconds, "peak_bytes": peak}

    def _times(self, case: Case, nets: Mapping[Role, FlowMap], samples: int, jumps: int, chunks: int) -> list[float]:
        if chunks:
            nets = {**nets, "student": Prefix(nets["student"], chunks)}
        trainer = Trainer(nets, stage_of(case, samples, jumps), data(case.spec, samples), device=self.device)
        times: list[float] = []
        warm = int(case.name == "flow matching")  # kernels are loaded, and some compiled, once
        while len(times) < REPEATS + warm and sum(times) < LONG_ENOUGH:
            if time.monotonic() + max(times, default=1.0) > self.deadline:
                break
            start = time.perf_counter()
            trainer.step(len(times))
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            print(f"  {case.slug}: {samples} samples, {jumps} jumps, {chunks} chunks: {times[-1]:.2f} s", flush=True)
        if not times:
            raise TimeoutError
        return times[warm:] or times

    def _networks(self, spec: WanSpec) -> Mapping[Role, FlowMap]:
        if self._spec != spec:
            self._spec, self._nets = spec, {}
            self._free()
            self._nets = large_memory.networks(spec, self.device)
        return self._nets

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def stage_of(case: Case, samples: int, jumps: int) -> Stage:
    method = jumping(case.method, jumps)
    return Stage(method, steps=100, batch=samples, optimizer=AdamW(lr=1e-6), ema=Ema(start=0))


def prefixes_of(case: Case) -> Mapping[int, float]:
    """A causal stage 2 trains beside its rollout on three chunks alone, the commonest prefix."""
    if case.student != "causal":
        return WHOLE
    return PREFIX if 0 in case.kinds else {3: 1.0}


def add_plan(out: Path) -> None:
    """The plan's memory and operations beside what was measured, in the files that are there."""
    record = json.loads((out / "large_step.json").read_text())
    for case in cases(record["tiny"]):
        for found in record["cases"]:
            same = (found["student"], found["case"], found["calls"], found["note"])
            if same == (case.student, case.name, case.calls, case.note) and found["outcome"] == "measured":
                of = evolve(case.spec, attention="spans") if case.student == "causal" else case.spec
                samples, prefixes = found["samples"], prefixes_of(case)
                found["plan_bytes"] = found["operations"] = 0.0
                for jumps, chunks in itertools.product(case.kinds, prefixes):
                    stage = stage_of(case, samples, jumps)
                    held, operations = large_memory.planned(of, stage, data(of, samples), chunks, Prefix)
                    found["plan_bytes"] = max(held, found["plan_bytes"])
                    found["operations"] += case.kinds[jumps] * prefixes[chunks] * operations
                print(f"{case.slug}: {found['plan_bytes'] / 2**30:.1f} GiB, {found['operations']:.3g} ops", flush=True)
                report.keep(out, record)


def data(spec: WanSpec, samples: int) -> TensorData:
    tiny = spec.path is None and spec.config["in_channels"] != LATENT[1]
    latent, text = ((21, 4, 8, 8), (8, 16)) if tiny else (LATENT, TEXT)
    rng = Rng.seeded(0)
    x, texts, null = (
        rng.noise_like(torch.zeros(shape)) for shape in ((samples, *latent), (samples, *text), (1, *text))
    )
    return TensorData(x, {"text": texts}, {"text": null})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--minutes", type=float, default=8.0, help="no iteration is begun that would go beyond")
    parser.add_argument("--samples", type=int, default=2, help="in an iteration on this GPU; halved where memory ends")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, on the CPU where there is no GPU")
    parser.add_argument("--add-plan", action="store_true", help="measure nothing: the plan's memory into DIR; no GPU")
    parser.add_argument(
        "--check-plan", action="store_true", help="memory of small networks alone, measured and planned"
    )
    parser.add_argument("--only", help="cases whose name holds this, such as 'causal, stage 2'")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    if options.add_plan:
        return add_plan(options.out)
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("there is no CUDA GPU here: this measures one; --tiny runs anywhere")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.check_plan:
        return large_memory.check(options.out, device, deadline)
    bench = Bench(device, options.samples, deadline)
    found: list[dict[str, Any]] = []
    for case in cases(options.tiny):
        if options.only is None or options.only in case.slug:
            found.append(bench.measure(case))
            print(f"{case.slug}: {report.line(found[-1])}", flush=True)
            report.write(options.out, found, PUBLISHED, tiny=options.tiny)


if __name__ == "__main__":
    main()
