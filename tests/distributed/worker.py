"""Run under torchrun: `worker.py FOLDER CASE...` trains the cases and leaves what rank 0 gets in FOLDER.

`memory=DIRECTORY` builds a network in pieces from a pipeline's directory, and leaves each rank's memory there.
"""

from __future__ import annotations

import re
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from flowmap_wan21 import Wan21
from safetensors.torch import save_file

from flowmap import distill
from flowmap._types import Role
from flowmap.training.ranks.agree import rank
from flowmap.training.ranks.distributed import Distribution, joined
from flowmap.training.ranks.sharding import pieces
from flowmap.training.run import primary
from tests.distributed.cases import CASES, distribution


def memory(directory: str) -> None:
    """Bytes in memory that no file stands for, before and with the pieces: the most there ever were."""
    spec, cpu = Wan21(directory, lora=None), torch.device("cpu")
    build = partial(spec.build, frozenset[Role]({"teacher"}), dtype=torch.float32)
    with joined(Distribution(timeout=60.0), cpu):
        build(device=torch.device("meta"))  # what is imported for it
        before = peak()
        nets = pieces(spec, lambda device: build(device=device), Distribution().mesh(cpu), cpu, torch.float32)
        size = sum(p.numel() * 4 for p in nets["teacher"].parameters())
        Path(directory, f"memory_{rank()}.txt").write_text(f"{peak() - before} {size}")


def peak() -> int:
    """Bytes, the most that this process has had in memory; what it has read of files counts."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    folder, *names = sys.argv[1:]
    for name in names:
        if name.startswith("memory="):
            memory(name.removeprefix("memory="))
            continue
        student = distill(CASES[name], distribution=distribution(name))
        if primary():
            tensors = {key: p.detach().contiguous() for key, p in student.trained().items()}
            save_file(tensors, Path(folder) / f"{name}.safetensors")
