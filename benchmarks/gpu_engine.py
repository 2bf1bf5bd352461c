"""Engines of TensorRT and TensorRT-RTX, where their libraries are: built of a small student, run, compared with it.

python -m benchmarks.gpu_engine --out DIR
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from flowmap_wan21 import Wan21

import flowmap
from flowmap._types import Role
from flowmap.atomic import write_text
from flowmap.export.errors import ExportError

from .gpu import options_of
from .large_step_report import hardware

ENGINES = ("tensorrt", "tensorrt-rtx")


def engine(to: str, student: Path, out: Path, example: Any) -> dict[str, Any]:
    try:
        report = flowmap.export(student, to, out, example=example, rollouts=(1, 4))
    except ExportError as error:
        return {"outcome": "not there", "reason": str(error)[:500]}
    except Exception as error:  # the library's own, of any kind; the other engine still counts
        return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
    return {"outcome": "measured", "manifest": json.loads((out / "manifest.json").read_text()), "report": str(report)}


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(__doc__, lambda _: None, arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec, found = Wan21(lora=None).tiny(), dict[str, Any]()
    student = spec.build(frozenset[Role](("student",)), device=device, dtype=torch.float32)["student"]
    with tempfile.TemporaryDirectory() as folder:
        spec.save(student, Path(folder) / "student")
        for to in ENGINES:
            found[to] = engine(to, Path(folder) / "student", Path(folder) / to, spec.example(1))
            record = {"tiny": options.tiny, "hardware": hardware(), "engines": found}
            options.out.mkdir(parents=True, exist_ok=True)
            write_text(options.out / "engines.json", json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
