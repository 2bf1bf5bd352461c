"""All that only a GPU can tell, in one command that writes after every part.

    python -m benchmarks.gpu --minutes 25 --out benchmarks/results/gpu
    python -m benchmarks.gpu --tiny --out DIR         # the same path on a CPU: its numbers mean nothing

In this order, each with a share of the minutes: attention kernels against the plain one; iterations of the 1.3B, in
ratios to plain flow matching and as a share of the card's bound; the plan's memory against the measured; latency of a
step and of four, compiled and by AOTInductor; NCCL with one rank; a TensorRT engine, run and compared. Each is a
process of its own, so that one which fails or hangs loses itself alone. `gpu.json` says how each ended, and why one was
left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from flowmap.atomic import write_text

from .large_step_report import hardware

SLACK = 60.0  # seconds beyond its share, after which a part is ended: an iteration that runs is not cut


@frozen
class Part:
    """module: its `main` is called with `--out`, `--minutes`, and `more`, or `--tiny` and `tiny`.

    share: of the minutes. cuda: without CUDA it is left out, tiny or not."""

    name: str
    module: str
    share: float
    more: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ()
    cuda: bool = False

    def arguments(self, out: Path, minutes: float, tiny: bool) -> list[str]:
        told = ["--out", str(out), "--minutes", f"{minutes:.3f}"]
        return [*told, "--tiny", *self.tiny] if tiny else [*told, *self.more]


PARTS = (
    Part("attention kernels", "benchmarks.gpu_kernels", 0.06),
    Part(
        "iterations",
        "benchmarks.large_step",
        0.44,
        ("--only", "ours"),
        ("--only", "bidirectional, flow matching, ours"),
    ),
    Part("the plan of them", "benchmarks.large_step", 0.08, ("--add-plan",), ("--add-plan",)),
    Part("memory against the plan", "benchmarks.large_step", 0.12, ("--check-plan",), (), cuda=True),
    Part("latency", "benchmarks.export_latency", 0.16, (), ("--only", "flowmap, eager")),
    Part("one rank", "benchmarks.gpu_rank", 0.04),
    Part("TensorRT", "benchmarks.gpu_engine", 0.1, (), (), cuda=True),
)


def measured(part: Part, out: Path, minutes: float, tiny: bool) -> dict[str, Any]:
    """How a part ended."""
    if part.cuda and not torch.cuda.is_available():
        return {"outcome": "left out", "reason": "needs CUDA, and there is none here"}
    if minutes <= 0:
        return {"outcome": "left out", "reason": "no time left"}
    arguments, began = part.arguments(out, minutes, tiny), time.monotonic()
    try:
        if tiny:  # here: a process of its own would load torch again
            importlib.import_module(part.module).main(arguments)
        else:
            command = [sys.executable, "-m", part.module, *arguments]
            subprocess.run(command, check=True, timeout=60 * minutes + SLACK)
    except subprocess.TimeoutExpired:
        return {"outcome": "ended", "reason": f"took more than {60 * minutes + SLACK:.0f} s"}
    except subprocess.CalledProcessError as error:
        return {"outcome": "failed", "reason": f"exit status {error.returncode}, see what it printed"}
    except Exception as error:  # the other parts still count
        return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
    return {"outcome": "done", "seconds": time.monotonic() - began}


def all_parts(out: Path, minutes: float, tiny: bool, only: str = "") -> dict[str, Mapping[str, Any]]:
    """Every part in order; what one leaves of its share, the later ones have."""
    out.mkdir(parents=True, exist_ok=True)
    end, found = time.monotonic() + 60 * minutes, dict[str, Mapping[str, Any]]()
    chosen = [part for part in PARTS if only in part.name]
    for i, part in enumerate(chosen):
        left, shares = (end - time.monotonic()) / 60, sum(later.share for later in chosen[i:])
        found[part.name] = measured(part, out, left * part.share / shares, tiny)
        print(f"{part.name}: {json.dumps(found[part.name])}", flush=True)
        record = {"tiny": tiny, "minutes": minutes, "hardware": hardware(), "parts": found}
        write_text(out / "gpu.json", json.dumps(record, indent=2) + "\n")
    return found


def options_of(
    about: str | None, more: Callable[[argparse.ArgumentParser], object], arguments: Sequence[str] | None
) -> Any:
    """Those that every part has."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--tiny", action="store_true", help="tiny networks, on the CPU where there is no GPU")
    more(parser)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("there is no CUDA GPU here: this measures one; --tiny runs anywhere")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(
        __doc__, lambda p: p.add_argument("--only", default="", help="parts with this name"), arguments
    )
    all_parts(options.out, options.minutes, options.tiny, options.only)


if __name__ == "__main__":
    main()
