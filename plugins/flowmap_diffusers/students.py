"""Students on disk: a pipeline directory that diffusers loads with the code beside it, without flowmap."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import torch
from attrs import evolve
from flowmap_lora.roles import parts

from flowmap import FlowMap
from flowmap.evaluation.rounding import since_built

from .build import WEIGHTS, exact, positions_of
from .network import DiffusersFlowMap
from .settings import STUDENT, Settings

CODE = Path(__file__).with_name("student.py.txt")


def save(spec: Settings, u: FlowMap, path: Path, dtype: torch.dtype) -> None:
    """`path/`: the transformer with both embedders of each time, adapters fused; from `spec.path` all else; the code.

    Class and file have names of their own, so that the plain class does not load it and leave out r. A
    variance-preserving student is written for `flowmap.load` alone: the steps of its pipeline are not those of the
    linear path.
    """
    from safetensors.torch import save_file

    if not isinstance(u, DiffusersFlowMap):
        raise TypeError(f"save: a {type(u).__name__} is not a network of flowmap_diffusers")
    folder = path / "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    kept, tensors = exact(spec.row, type(u.net)), {}
    for name, base, change in parts(u.net, u.adapter):
        weight = base if change is None else base.float() + change
        if weight.is_floating_point():
            weight = weight.to(torch.float32 if kept.search(name) else dtype)
        tensors[name] = weight.cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {key: value for key, value in u.net.config.items() if not key.startswith("_")}
    (folder / "config.json").write_text(json.dumps({"_class_name": "Student", **config}, indent=2) + "\n")
    known = {name: getattr(spec, name) for name in ("family", "gamma", "shift", "fps", "guidance")}
    (path / STUDENT).write_text(json.dumps(known, indent=2) + "\n")
    if spec.path is not None:
        _pipeline(spec, Path(spec.path), path)


def changes(spec: Settings, u: DiffusersFlowMap) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(W, ΔW) of every weight that was trained and does not stay float32, one by one."""
    if u.lora is None:
        yield from since_built(spec, u, u.role)
        return
    kept = exact(spec.row, type(u.net))
    for name, base, change in parts(u.net, u.adapter):
        if change is not None and not kept.search(name):
            yield base.float() + change, change


def _pipeline(spec: Settings, base: Path, path: Path) -> None:
    import diffusers

    if not base.is_dir():
        from huggingface_hub import snapshot_download

        base = Path(snapshot_download(str(base), ignore_patterns=["transformer/*"]))
    index = json.loads((base / "model_index.json").read_text())
    for name in index:
        if name != "transformer" and (base / name).is_dir():
            shutil.copytree(base / name, path / name, dirs_exist_ok=True)
    if spec.row.vp:
        (path / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        return
    shutil.rmtree(path / "scheduler", ignore_errors=True)
    kind = diffusers.FlowMatchEulerDiscreteScheduler
    kind(shift=spec.shift, **spec.row.schedule).save_pretrained(path / "scheduler")
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    if "guider" in index:
        diffusers.ClassifierFreeGuidance(guidance_scale=1.0).save_pretrained(path / "guider")
        index["guider"] = ["diffusers", "ClassifierFreeGuidance"]
    index |= {"_class_name": ["student", "Pipeline"], "transformer": ["student", "Student"]}
    (path / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for place in (path / "student.py", path / "transformer" / "student.py"):
        place.write_text(code(spec))


def code(spec: Settings) -> str:
    """The file beside the weights."""
    row = spec.row
    defaults = {"num_inference_steps": 4, **row.call({"guidance": torch.tensor([spec.guidance])}, positions_of(spec))}
    return Template(CODE.read_text()).substitute(
        pipeline=row.pipeline,
        transformer=row.transformer,
        paths=row.times,
        gamma=spec.gamma,
        scale=row.convention.scale,
        multiplies=row.multiplies,
        time=row.names[1],
        flip=(row.convention.clock == "1-t") != bool(row.schedule.get("invert_sigmas")),
        defaults=defaults,
    )


def load(spec: Settings, path: Path, *, device: Any, dtype: Any) -> FlowMap:
    """The student that `save` wrote."""
    student = evolve(spec, path=path, lora=None, config={})
    return student.build(frozenset({"student"}), device=device, dtype=dtype)["student"]
