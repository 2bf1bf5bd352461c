"""Pipelines of two experts, Wan2.2 A14B: `transformer` for times above `boundary_ratio`, `transformer_2` below.

A student of one is half of such a pipeline, and the other half is not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from flowmap_diffusers.folder import fetch, local

from flowmap.mistaken import INDEX, read

from . import pipelines

Expert: TypeAlias = Literal["high", "low"]
PARTS: Mapping[Expert, str] = {"high": "transformer", "low": "transformer_2"}
STUDENT = ["student", "Pipeline"]
"""The class of a student's pipeline, in a file beside it."""
CODE = Path(__file__).with_name("experts.py.txt")
BOUNDARIES: Mapping[str, float] = {"Wan-AI/Wan2.2-T2V-A14B-Diffusers": 0.875}
"""Of published pipelines, by hub id."""
FILE = "experts.json"
"""Beside a student's `model_index.json`: what guidance each has built in."""


def index_of(path: str) -> dict[str, Any]:
    """`model_index.json` of a directory, or of a hub id; nothing where there is none."""
    folder = local(path)
    return read((folder or fetch(path)) / INDEX)


def experts(index: Mapping[str, Any]) -> list[Expert]:
    """Which of two are there; none, where the pipeline has one network."""
    if index.get("boundary_ratio") is None:
        return []
    return [expert for expert, part in PARTS.items() if (index.get(part) or [None])[-1] is not None]


def boundary(path: str) -> float | None:
    """Where the experts of a pipeline part."""
    if local(path) is None and path in BOUNDARIES:
        return BOUNDARIES[path]
    found: float | None = index_of(path).get("boundary_ratio")
    return found


def within(path: str | None, expert: Expert | None) -> tuple[float, float]:
    """The times of an expert; all of them, where the boundary is not known."""
    b = None if path is None or expert is None else boundary(path)
    if b is None:
        return 0.0, 1.0
    return (b, 1.0) if expert == "high" else (0.0, b)


def guidance(path: str | None, expert: Expert | None, otherwise: float | None) -> float | None:
    """What a student of this expert has built in; `otherwise` where nobody wrote it down."""
    known = {} if path is None else read(Path(path) / FILE).get("guidance", {})
    found: float | None = known.get(expert, otherwise)
    return found


def write(base: str, out: Path, networks: Mapping[Expert, Any], shift: float, guidance: Mapping[Expert, Any]) -> None:
    """Students of one or both experts of the pipeline at `base`, as a pipeline that diffusers loads with its code."""
    import diffusers

    own = {PARTS[expert]: network for expert, network in networks.items()}
    others = [part for part in PARTS.values() if part not in own]
    own["scheduler"] = diffusers.FlowMapEulerDiscreteScheduler(shift=shift)
    at = boundary(base)
    pipelines.write(base, out, own, "WanPipeline", without=others)
    index = json.loads((out / INDEX).read_text())
    index |= {"_class_name": STUDENT, "boundary_ratio": at}
    index |= {part: ["student", "Student"] for part in own if part != "scheduler"}
    index |= {part: [None, None] for part in others}
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (out / FILE).write_text(json.dumps({"guidance": dict(guidance)}, indent=2) + "\n")
    for place in (out, *(out / part for part in own if part != "scheduler")):
        (place / "student.py").write_text(CODE.read_text())
