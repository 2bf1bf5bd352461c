"""Run the timed benchmarks and write what they found, with the machine named.

    python -m benchmarks.report [--out DIR] [--note "a training ran on the other core"]

`step_cost.json`, `sampler.json`, `replay.json`, `history.json` and `import_time.json`, and `performance.md`, a table of
them all, go to `benchmarks/results`. Ratios are of times measured side by side; operations, calls and bytes are counted
and do not depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import flowmap

ROOT = Path(__file__).parents[1]
GROUPS = ("step_cost", "sampler", "replay", "history", "import_time")
PARTS = ("student", "guidance", "derivative", "rollout", "teacher", "critic")


def hardware() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads_used": 1,
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "flowmap": flowmap.__version__,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure() -> list[dict[str, Any]]:
    """The benchmarks of a pytest run, each with its `extra_info`."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "benchmarks.json"
        options = ["-q", "--timeout=3600", f"--benchmark-json={file}"]
        subprocess.run([sys.executable, "-m", "pytest", "benchmarks", *options], cwd=ROOT, check=True)
        found: list[dict[str, Any]] = json.loads(file.read_text())["benchmarks"]
    return found


def table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """performance.md."""
    machine = groups["step_cost"]["hardware"]
    lines = [
        "# Performance",
        "",
        f"Measured by `python -m benchmarks.report` on {machine['cpu']}, {machine['cores']} cores, one thread used, "
        f"Python {machine['python']}, torch {machine['torch']}; load average before the run "
        f"{machine['load_average'][0]}. {groups['step_cost']['note']}".strip(),
        "",
        "Subject and reference ran in turns: medians over the rounds; in brackets the quartiles of the ratio.",
        "",
        *_rows(
            ("subject", "reference", "subject, ms", "time ratio"), (_timing(e) for g in GROUPS for e in _of(groups, g))
        ),
        "",
        f"`import flowmap.distill` takes {_of(groups, 'import_time')[0]['seconds_over_torch']:.2f} s over torch alone.",
        f"No latent of `flowmap.sample` is farther than {_largest(groups):.0e} from `AnyFlowPipeline`'s.",
        "",
        "## Operations of a step",
        "",
        "In calls of the student without a graph, for the same batch; forward and backward passes together.",
        "",
        *_rows(("step", *PARTS, "all", "over flow matching"), (_operations(e) for e in _of(groups, "step_cost"))),
        "",
        "Calls a sample, G with a graph and F without:",
        "",
        *_rows(("step", "calls"), ((e["subject"], _calls(e["calls"])) for e in _of(groups, "step_cost"))),
        "",
        "## Memory of a rollout",
        "",
        "The most bytes of tensors alive at once in a rollout and its backward pass, beside weights and inputs, and "
        "against the same rollout with the graph of all chunks; operations against it.",
        "",
        *_rows(
            ("rollout", "megabytes", "with all graphs", "ratio", "operations"),
            (_memory(entry) for entry in _of(groups, "replay")),
        ),
    ]
    return "\n".join(lines) + "\n"


def _of(groups: Mapping[str, Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = groups[name]["results"]
    return found


def _rows(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


def _timing(entry: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = entry["ratio_quartiles"]
    ratio = f"{entry['ratio']:.2f} ({low:.2f} to {high:.2f})"
    return entry["subject"], entry["reference"], f"{1000 * entry['seconds']:.1f}", ratio


def _operations(entry: Mapping[str, Any]) -> tuple[str, ...]:
    spent: Mapping[str, float] = entry["flops_in_calls"]
    parts = [sum(count for name, count in spent.items() if name.split()[0] == part) for part in PARTS]
    shown = (f"{count:.2f}" if count else "" for count in parts)
    return entry["subject"], *shown, f"{sum(spent.values()):.2f}", f"{entry['flop_ratio']:.2f}"


def _memory(entry: Mapping[str, Any]) -> tuple[str, ...]:
    megabytes = (f"{entry[name] / 1e6:.1f}" for name in ("peak_bytes", "reference_peak_bytes"))
    return entry["subject"], *megabytes, f"{entry['peak_ratio']:.2f}", f"{entry['flop_ratio']:.2f}"


def _calls(calls: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {count:.2f}" for name, count in calls.items())


def _largest(groups: Mapping[str, Mapping[str, Any]]) -> float:
    return max(entry.get("largest_difference_of_latents", 0.0) for entry in _of(groups, "sampler"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    arguments = parser.parse_args()
    machine, found = hardware(), measure()
    groups = {
        name: {
            "hardware": machine,
            "note": arguments.note,
            "results": [benchmark["extra_info"] for benchmark in found if benchmark["group"] == name],
        }
        for name in GROUPS
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, group in groups.items():
        (arguments.out / f"{name}.json").write_text(json.dumps(group, indent=2) + "\n")
    (arguments.out / "performance.md").write_text(table(groups))
    print(table(groups))


if __name__ == "__main__":
    main()
