"""Forms of a student that diffusers reads without any code of ours: for a fixed number of steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from flowmap_lora import Lora, files
from flowmap_lora.start import LORA_FILE
from torch import Tensor
from torch.nn import functional as F

from flowmap.export.errors import ExportError
from flowmap.export.forms import Written
from flowmap.export.spec import DTYPES
from flowmap.model import sha256

from .build import exact
from .fixed_steps import Change, changes, of_now, plain_class
from .network import DiffusersFlowMap
from .students import fused
from .witness import grid

if TYPE_CHECKING:
    from flowmap.export.forms import Saved
    from flowmap.export.spec import Asked

    from .settings import Settings

STEPS, MOST = 4, 100


@frozen
class FixedSteps:
    """`fixed-steps`: the teacher's own classes and pipeline, right for one number of steps.

    Options: steps (4).
    """

    def check(self, student: Saved, asked: Asked) -> None:
        _checked(student, asked, "fixed-steps")

    @torch.no_grad()
    def write(self, student: Saved, asked: Asked, out: Path) -> Written:
        u, times = _loaded(student), grid(_settings(student), _steps(asked))
        plain = plain_class(u, of_now(fused(u), u.row.times))
        made = changes(u, plain, times)
        for change in made:
            plain.get_submodule(change.layer).weight.add_(change.b @ change.a)
        kept, dtype = exact(u.row, type(plain)), DTYPES[asked.precision]
        for name, p in plain.named_parameters():
            p.data = p.data.to(torch.float32 if kept.search(name) else dtype)
        plain.save_pretrained(out / "transformer")
        _pipeline(student, u, out)
        lines = [f"pipe = {u.row.pipeline}.from_pretrained('this directory')"]
        (out / "README.txt").write_text(_readme(_settings(student), u, times, lines))
        return Written(sha256(plain.state_dict()), _sampler(student, times), {}, max(c.error for c in made))


@frozen
class FixedStepsLora:
    """`lora`: a LoRA file for the teacher's own pipeline, `pipe.load_lora_weights(DIR)`, right for one number of steps.

    The adapters of the blocks are carried over; those of the time embedders, and the second embedders, become one pair
    on the last layer of each, filled up with zeros to the rank of the others. alpha / rank is in lora_B.

    Options: steps (4).
    """

    def check(self, student: Saved, asked: Asked) -> None:
        _checked(student, asked, "lora")
        if not (student.folder / "lora" / LORA_FILE).is_file():
            raise ExportError(
                f"{student.folder}: has no adapters (lora/{LORA_FILE}): its weights were trained whole; export "
                "it --to fixed-steps"
            )
        if fused := files.of(student.folder / "lora" / LORA_FILE).get("fused"):
            raise ExportError(
                f"{student.folder}: its adapters sit on a base that {fused!r} was fused into, which a LoRA file of "
                "them cannot hold: export it --to fixed-steps"
            )

    @torch.no_grad()
    def write(self, student: Saved, asked: Asked, out: Path) -> Written:
        u, times = _loaded(student), grid(_settings(student), _steps(asked))
        layers, scale, base = adapters(student.folder / "lora" / LORA_FILE)
        of_time = {name: pair for name, pair in layers.items() if name.startswith(tuple(f"{p}." for p in u.row.times))}
        own = of_now(_without(fused(u), of_time, scale), u.row.times)
        made = changes(u, plain_class(u, own), times)
        dtype = DTYPES[asked.precision]
        tensors = carried(layers, scale, made, u.row.times, dtype)
        rank = max(len(value) for name, value in tensors.items() if ".lora_A." in name)
        files.save(out, tensors, Lora(rank, float(rank)), {"path": base, "steps": len(times) - 1})
        pipeline, kept = u.row.pipeline, student.spec.shift
        lines = [
            f"pipe = {pipeline}.from_pretrained({base or 'PATH OF THE BASE'!r})",
            "pipe.load_lora_weights('this directory')",
            *([] if u.row.vp else [f"pipe.scheduler = FlowMatchEulerDiscreteScheduler({_scheduled(u, kept)})"]),
        ]
        (out / "README.txt").write_text(_readme(_settings(student), u, times, lines))
        return Written(sha256(tensors), _sampler(student, times), {"base": base}, max(c.error for c in made))


def adapters(file: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], float, str | None]:
    """(A, B) by layer, alpha / rank, and where the base is."""
    tensors, said = files.load(file), files.scale(file)
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    pairs = {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in names}
    return pairs, said, files.of(file).get("path")


def carried(
    layers: Mapping[str, tuple[Tensor, Tensor]], scale: float, made: list[Change], paths: tuple[str, ...], dtype: Any
) -> dict[str, Tensor]:
    """The pairs of the blocks and of the embedders' last layers, all of one rank."""
    pairs = {
        name: (a.to(dtype), (scale * b.double()).to(dtype))
        for name, (a, b) in layers.items()
        if not any(name.startswith(f"{path}.") for path in paths)
    }
    pairs |= {change.layer: (change.a, change.b) for change in made}
    rank = max(len(a) for a, _ in pairs.values())
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"{name}.lora_A.weight"] = F.pad(a, (0, 0, 0, rank - len(a)))
        tensors[f"{name}.lora_B.weight"] = F.pad(b, (0, rank - len(a)))
    return tensors


def _without(
    tensors: dict[str, Tensor], layers: Mapping[str, tuple[Tensor, Tensor]], scale: float
) -> dict[str, Tensor]:
    """With the embedders of the base, which stay float32."""
    found = dict(tensors)
    for name, (a, b) in layers.items():
        weight = found[f"{name}.weight"]
        found[f"{name}.weight"] = (weight.double() - scale * (b.double() @ a.double())).to(weight.dtype)
    return found


def _checked(student: Saved, asked: Asked, to: str) -> None:
    asked.known(to, ("steps",))
    steps = _steps(asked)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST:
        raise ExportError(f"steps = {steps!r}: must be an integer from 1 to {MOST}")
    if _settings(student).row.second:
        raise ExportError(
            f"{student.folder}: its network has two times of its own, of which the teacher's pipeline tells it one: "
            "load it with its code, trust_remote_code=True"
        )
    if not (student.folder / "model_index.json").is_file():
        raise ExportError(f"{student.folder}: has no model_index.json: a student of random weights has no pipeline")
    if student.sampler["sampler"] != "flow_map":
        raise ExportError(
            f"{student.folder}: a {student.sampler['sampler']} student jumps to data and renews the noise, and the "
            "pipeline follows the flow: export it as a graph"
        )


def _steps(asked: Asked) -> Any:
    return asked.options.get("steps", STEPS)


def _settings(student: Saved) -> Settings:
    from .settings import Settings

    assert isinstance(student.spec, Settings)
    return student.spec


def _loaded(student: Saved) -> DiffusersFlowMap:
    u = student.spec.load(student.folder, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(u, DiffusersFlowMap)
    return u


def _sampler(student: Saved, times: list[float]) -> dict[str, Any]:
    return {**student.sampler, "steps": len(times) - 1, "times": times}


def _pipeline(student: Saved, u: DiffusersFlowMap, out: Path) -> None:
    """All but the transformer, under the names of the teacher's pipeline."""
    index = json.loads((student.folder / "model_index.json").read_text())
    for name in index:
        if name != "transformer" and (student.folder / name).is_dir():
            shutil.copytree(student.folder / name, out / name)
    index |= {"_class_name": u.row.pipeline, "transformer": ["diffusers", u.row.transformer]}
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _size(u: DiffusersFlowMap) -> dict[str, int]:
    """Of training, as the pipeline is told it."""
    (frames, _, height, width), p = u.shapes["z"], u.positions
    size = {"height": height * p.spatial, "width": width * p.spatial}
    known = signature(u.row.classes()[1].__call__).parameters
    named = next((name for name in ("num_frames", "frames") if name in known), None)
    return size if named is None else {**size, named: (frames - 1) * p.temporal + 1}


def _scheduled(u: DiffusersFlowMap, shift: float) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in {"shift": shift, **u.row.schedule}.items())


def _readme(spec: Settings, u: DiffusersFlowMap, times: list[float], lines: list[str]) -> str:
    n, every = len(times) - 1, ", ".join(f"{t:.6g}" for t in times)
    imported = u.row.pipeline if len(lines) < 3 else f"FlowMatchEulerDiscreteScheduler, {u.row.pipeline}"
    called = {
        **_size(u),
        "num_inference_steps": n,
        **u.row.call({"guidance": torch.tensor([spec.guidance])}, u.positions),
    }
    given = ", ".join(f"{name}={value!r}" for name, value in called.items())
    begun = "image=first, prompt=" if u.row.images else ""
    made = "".join(f"    {line}\n" for line in lines)
    return f"""A student for {n} steps, and no other number: the time that a step ends at is frozen into the network.

    from diffusers import {imported}

{made}    pipe({begun}"a prompt", {given})

Its times, of which 1 is noise and 0 data: {every}.
"""
