"""From what `large_step` measured to JSON and a table beside the published numbers."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import flowmap
from flowmap.atomic import write_text
from flowmap.training.pace import bound

Published = Mapping[str, Mapping[str, float]]


def line(case: Mapping[str, Any]) -> str:
    if case["outcome"] != "measured":
        return str(case["outcome"])
    peak = "not measured" if case["peak_bytes"] is None else f"{case['peak_bytes'] / 2**30:.1f} GiB"
    return f"{case['seconds']:.2f} s an iteration of {case['samples']} samples, peak memory {peak}"


def write(out: Path, cases: Sequence[Mapping[str, Any]], published: Published, *, tiny: bool) -> None:
    """large_step.json and large_step.md in `out`, whole or as they were before."""
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "benchmark": "large_step",
        "tiny": tiny,
        "hardware": hardware(),
        "published": published,
        "cases": list(cases),
    }
    keep(out, record)


def keep(out: Path, record: Mapping[str, Any]) -> None:
    write_text(out / "large_step.json", json.dumps(record, indent=2) + "\n")
    write_text(out / "large_step.md", "\n".join(table(record)) + "\n")


def hardware() -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "gpu": None if gpu is None else gpu.name,
        "bound_tflops": None if gpu is None else bound(gpu.name),
        "gpu_bytes": None if gpu is None else gpu.total_memory,
        "cuda": torch.version.cuda,
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "flowmap": flowmap.__version__,
    }


def table(record: Mapping[str, Any]) -> list[str]:
    machine = record["hardware"]
    where = machine["gpu"] or f"{machine['cpu']}, no GPU"
    lines = [
        "# A training iteration of Wan2.1 1.3B at 81 frames and 480 × 832",
        "",
        *(["**A tiny network: these numbers mean nothing.**", ""] if record["tiny"] else []),
        f"One {where}; torch {machine['torch']}, CUDA {machine['cuda']}, flowmap {machine['flowmap']}. Random weights,",
        "LoRA of rank 256 in float32 (products in TF32, where nothing else is said) on a bfloat16 base, activation",
        "checkpointing, no compilation. Published: arXiv:2605.13724, 8 H100, a batch of 16, so two samples a GPU. A",
        "ratio is to flow matching of the same student. Plan: what `flowmap distill --plan` finds for the same step,",
        "from shapes alone. Written by `benchmarks/large_step.py`.",
        "",
        "| student | iteration | calls | samples | seconds | ratio | published s | published | peak GiB | plan GiB "
        "| of the bound |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case in record["cases"]:
        published = record["published"].get(case["student"], {})
        theirs, plain = published.get(case["case"]), published.get("flow matching")
        name = f"{case['case']} ({case['note']})" if case["note"] else case["case"]
        row = [case["student"], name, case["calls"]]
        if case["outcome"] != "measured":
            lines.append("| " + " | ".join([*row, case["outcome"].replace("|", "/").splitlines()[0]]) + " |" * 8)
            continue
        per_sample = _plain(record["cases"], case["student"])
        ratio = None if per_sample is None else case["seconds"] / case["samples"] / per_sample
        ratios = None if theirs is None or plain is None else theirs / plain
        row += [str(case["samples"]), f"{case['seconds']:.2f}", _number(ratio), _number(theirs, 1), _number(ratios)]
        row += [_number(_gib(case["peak_bytes"]), 1), _number(_gib(case.get("plan_bytes")), 1)]
        row += [_number(_share(case, machine.get("bound_tflops")))]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _plain(cases: Sequence[Mapping[str, Any]], student: str) -> float | None:
    """Seconds a sample of flow matching."""
    for case in cases:
        key = case["student"], case["case"], case["note"], case["outcome"]
        if key == (student, "flow matching", "", "measured"):
            return float(case["seconds"] / case["samples"])
    return None


def _share(case: Mapping[str, Any], bound: float | None) -> float | None:
    """Of what the card can do in bfloat16, recomputed operations included."""
    known = bound is not None and "operations" in case
    return case["operations"] / case["seconds"] / bound / 1e12 if known and bound else None


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _gib(value: float | None) -> float | None:
    return None if value is None else value / 2**30
