"""This checkout beside another, in one run: every round runs both, each in a process of its own, so that both meet the
same machine. `git worktree add OTHER COMMIT` makes the other one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).parents[1]


def run(checkout: Path, code: str, **told: object) -> Any:
    """What `code` prints as its last line, JSON, with the packages of a checkout, and without the plugins that it has
    not; told: in its environment."""
    path = os.pathsep.join(str(checkout / part) for part in ("", "plugins"))
    entries = [(entry.name, entry.module.partition(".")[0]) for entry in metadata.entry_points(group="flowmap")]
    absent = [name for name, package in entries if not any((checkout / p / package).is_dir() for p in ("", "plugins"))]
    environment = os.environ | {"PYTHONPATH": path, "FLOWMAP_DISABLE_PLUGINS": ",".join(absent)}
    environment |= {name: str(value) for name, value in told.items()}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed: compiled once
    environment["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "flowmap_benchmarks")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def beside(other: Path, code: str, *, rounds: int, **told: object) -> dict[str, dict[str, Any]]:
    """By each number that `code` prints: medians of both, of the ratio ours / the other's, and its quartiles."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds + 1):
        sides = (other, ROOT) if number % 2 else (ROOT, other)
        both = {side: run(side, code, **told) for side in sides}
        if number:  # the first reads files into memory
            for name in both[ROOT].keys() & both[other].keys():
                found.setdefault(name, []).append((both[other][name], both[ROOT][name]))
    return {name: summary(pairs) for name, pairs in sorted(found.items())}


def summary(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    before, now = (median(side) for side in zip(*pairs, strict=True))
    ratios = [b / a if a else float("nan") for a, b in pairs]
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"before": before, "now": now, "ratio": middle, "ratio_quartiles": [low, high], "rounds": len(pairs)}


def described(other: Path) -> dict[str, Any]:
    """What it was measured on."""
    import torch

    said = ["git", "-C", str(other), "rev-parse", "--short", "HEAD"]
    return {
        "before": subprocess.run(said, check=True, capture_output=True, text=True).stdout.strip(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def save(file: Path, found: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")


def write(file: Path, other: Path, results: Mapping[str, Any]) -> None:
    """With what it was measured on."""
    save(file, {"machine": described(other), "results": results})
    for name, its in results.items():
        print(f"{name:36} {its['before']:10.4g} {its['now']:10.4g}  {its['ratio']:.3f}")
