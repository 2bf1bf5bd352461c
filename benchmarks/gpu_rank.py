"""One rank of NCCL, or of gloo on a CPU: a network in pieces has the gradients of a whole one; what it exchanges with
itself comes back.

python -m benchmarks.gpu_rank --out DIR [--tiny]
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from flowmap_wan21 import Lora, Wan21
from torch import Tensor, distributed

from flowmap import FlowMap, Rng
from flowmap._types import Cond, Latent, Role
from flowmap.atomic import write_text
from flowmap.context_parallel import Context
from flowmap.training.ranks.distributed import Distribution
from flowmap.training.ranks.sharding import pieces, whole

from .gpu import options_of
from .large_step_report import hardware

ROLES = frozenset[Role](("student", "teacher", "critic"))


def gradients(u: FlowMap, z: Latent, cond: Cond) -> Mapping[str, Tensor]:
    """Of a student's squared output."""
    t = torch.full((len(z),), 0.8, device=z.device)
    u(z, t, 0.5 * t, cond).square().sum().backward()
    found = {name: p.grad for name, p in u.trained().items() if p.grad is not None}
    return {name: g.float().cpu() for name, g in whole(found).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(__doc__, lambda _: None, arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = Wan21(lora=Lora(4, 4.0), text_length=4, text_tokens=4)
    x, cond = spec.example(2)
    began = time.monotonic()
    z, cond = Rng.seeded(0).noise_like(x).to(device), {name: value.to(device) for name, value in cond.items()}
    alone = gradients(spec.build(ROLES, device=device, dtype=torch.float32)["student"], z, cond)
    found: dict[str, Any] = {"backend": "nccl" if device.type == "cuda" else "gloo"}
    with tempfile.TemporaryDirectory() as folder:
        store = distributed.FileStore(str(Path(folder) / "store"), 1)
        distributed.init_process_group(
            found["backend"], store=store, rank=0, world_size=1, timeout=timedelta(minutes=2)
        )
        try:
            nets = pieces(
                spec,
                lambda where: spec.build(ROLES, device=where, dtype=torch.float32),
                Distribution().mesh(device),
                device,
                torch.float32,
            )
            in_pieces = gradients(nets["student"], z, cond)
            given = torch.randn(1, 3, 4, device=device)
            found["exchange_gives_back"] = bool(torch.equal(Context(1, 0).exchange(given), given))
        finally:
            distributed.destroy_process_group()
    largest = max(float(g.abs().max()) for g in alone.values())
    found["tensors"] = len(in_pieces)
    found["largest_difference"] = max(float((alone[name] - g).abs().max()) for name, g in in_pieces.items()) / largest
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"tiny": options.tiny, "hardware": hardware(), "seconds": time.monotonic() - began, **found}
    write_text(options.out / "rank.json", json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
