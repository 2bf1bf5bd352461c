"""A small network in the shape of the large ones, real and hollow, and what a step of it held."""

from __future__ import annotations

import torch
from flowmap_far import Far
from flowmap_wan21 import Lora, Wan21
from torch.profiler import ProfilerActivity, profile

from flowmap import Stage, TensorData
from flowmap.planning.hollow import META, hollowed
from flowmap.planning.trace import Traced, trace
from flowmap.training.loop import Trainer

CPU = torch.device("cpu")
ROLES = frozenset({"student", "teacher", "critic"})
BATCH, FRAMES, SIDE, TEXT = 2, 5, 16, (16, 32)
CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT[1],
    "freq_dim": 32,
    "ffn_dim": 256,
    "num_layers": 3,
    "rope_max_seq_len": 64,
}


def spec(causal=False, lora=True, checkpointing=True):
    of, more = (Far, {"partition": (1, 2, 1, 1), "attention": "spans"}) if causal else (Wan21, {})
    adapters = Lora(8, 8.0) if lora else None
    return of(lora=adapters, checkpointing=checkpointing, config=CONFIG, text_length=16, text_tokens=16, **more)


def data(batch=BATCH):
    g = torch.Generator().manual_seed(0)
    x, text = (torch.randn(batch, *s, generator=g) for s in ((FRAMES, 16, SIDE, SIDE), TEXT))
    return TensorData(x, {"text": text}, {"text": torch.zeros(1, *TEXT)})


def stage(method):
    return Stage(method, steps=10, batch=BATCH)


def hollow(of, dtype=torch.float32):
    nets = of.build(ROLES, device=META, dtype=dtype)
    hollowed(nets.values())
    return nets


def traced(method, of, dtype=torch.float32, iteration=1) -> Traced:
    return trace(stage(method), hollow(of, dtype), data(), 0, 0, iteration)


def planned(found: Traced) -> float:
    """Bytes at the fullest moment."""
    return sum(found.fullest.held.values())


def measured(method, of, dtype=torch.float32, iteration=1) -> float:
    """The same of a real step, from every allocation and release that torch's profiler saw."""
    return measured_step(of.build(ROLES, device=CPU, dtype=dtype), stage(method), data(), iteration)


def measured_step(nets, of: Stage, samples: TensorData, iteration: int) -> float:
    trainer = Trainer(nets, of, samples)
    tables = (v for u in nets.values() for m in u.modules() for v in vars(m).values() if isinstance(v, torch.Tensor))
    there = (*(t for u in nets.values() for t in (*u.parameters(), *u.buffers())), *tables)
    parameters = {id(p): p.nbytes for p in there}
    averages = sum(t.nbytes for a in trainer.averages.values() for t in a.tensors.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        trainer.step(iteration)
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = sum(parameters.values()) + averages
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest
