"""The memory of a step on a GPU beside the plan's: of `large_step`'s cases, and of small networks.

python -m benchmarks.large_step --check-plan --out DIR
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from flowmap_far import Far
from flowmap_wan import Lora, WanSpec
from flowmap_wan.sizes import T2V_1_3B
from flowmap_wan21 import Wan21

from flowmap import AdamW, Ema, FlowMap, Rng, Stage, TensorData
from flowmap._types import Role
from flowmap.atomic import write_text
from flowmap.methods import anyflow
from flowmap.methods.flow_matching import flow_matching
from flowmap.planning.hollow import META, hollowed
from flowmap.planning.trace import trace
from flowmap.training.loop import Trainer

from .large_step_report import hardware

ROLES = frozenset[Role](("student", "teacher", "critic"))
SMALL: Mapping[str, Any] = {**T2V_1_3B, "num_attention_heads": 8, "ffn_dim": 4096, "num_layers": 8, "text_dim": 512}
LATENT, TEXT = (21, 16, 30, 52), (512, 512)


def networks(spec: WanSpec, device: torch.device) -> Mapping[Role, FlowMap]:
    """bfloat16; the teacher was fine-tuned in stage 0, so it has adapters too."""
    with device:  # random weights are made where they stay
        nets = spec.build(ROLES, device=device, dtype=torch.bfloat16)
        nets["teacher"].thaw()
    return nets


def planned(
    spec: WanSpec, stage: Stage, data: TensorData, chunks: int, prefix: Callable[..., FlowMap]
) -> tuple[float, float]:
    """(most bytes, operations) of the step on one GPU. chunks: of a causal student's video; 0 is all."""
    nets = dict(networks(spec, META))
    hollowed(nets.values())
    if chunks:
        nets["student"] = prefix(nets["student"], chunks)
    found = trace(stage, nets, data, 0, 0, 0)
    lasting = sum(found.lasting[kind] for kind in ("weights", "adapters", "optimiser", "average"))
    return lasting + found.fullest.passing() + found.fullest.held.get("gradients", 0), sum(found.parts.values())


def check(out: Path, device: torch.device, deadline: float) -> None:
    """plan_memory.json in `out`: measured and planned bytes of small networks, a case at a time."""
    out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for name, spec, stage in _cases():
        if time.monotonic() > deadline:
            break
        data = _data(stage.batch)
        real = _measured(spec, stage, data, device)
        estimate, _ = planned(spec, stage, data, 0, lambda u, _: u)
        found.append({"case": name, "measured_bytes": real, "planned_bytes": estimate})
        share = "not measured" if real is None else f"{real / 2**30:.2f} GiB measured, {estimate / real - 1:+.1%}"
        print(f"{name}: {estimate / 2**30:.2f} GiB planned, {share}", flush=True)
        write_text(out / "plan_memory.json", json.dumps({"hardware": hardware(), "cases": found}, indent=2) + "\n")


def _cases() -> Iterator[tuple[str, WanSpec, Stage]]:
    methods = {"flow matching": flow_matching(role="student"), "stage 1": anyflow.forward()}
    methods["stage 2"] = anyflow.on_policy(steps=(4,))
    for student, kind in (("bidirectional", Wan21), ("causal", Far)):
        for lora in (Lora(64, 64.0), None):
            for recompute in (True, False):
                for name, method in methods.items():
                    spec = kind(lora=lora, checkpointing=recompute, config=SMALL)
                    what = ("adapters" if lora else "whole", "recomputed" if recompute else "held")
                    stage = Stage(method, steps=10, batch=2, optimizer=AdamW(lr=1e-6), ema=Ema(start=0))
                    yield f"{student}, {name}, {', '.join(what)}", spec, stage


def _measured(spec: WanSpec, stage: Stage, data: TensorData, device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    nets = networks(spec, device)
    trainer = Trainer(nets, stage, data, device=device)
    torch.cuda.reset_peak_memory_stats()
    trainer.step(0)
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def _data(samples: int) -> TensorData:
    rng = Rng.seeded(0)
    x, text, null = (rng.noise_like(torch.zeros(s)) for s in ((samples, *LATENT), (samples, *TEXT), (1, *TEXT)))
    return TensorData(x, {"text": text}, {"text": null})
