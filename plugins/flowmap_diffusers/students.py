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
from flowmap_lora import files
from flowmap_lora.roles import parts
from flowmap_lora.start import LORA_FILE
from torch import Tensor

from flowmap import FlowMap
from flowmap.evaluation.rounding import since_built

from . import bases
from .build import WEIGHTS, exact, hear, hollow, positions_of
from .causal import kind
from .folder import downloaded
from .network import DiffusersFlowMap, Running
from .settings import STUDENT, Settings

CODE = Path(__file__).with_name("student.py.txt")


def save(spec: Settings, u: FlowMap, path: Path, dtype: torch.dtype) -> None:
    """`path/`: the transformer with both embedders of each time, adapters fused; from `spec.path` all else; the code;
    `path/lora/`: the adapters on their own.

    Class and file have names of their own, so that the plain class does not load it and leave out r. A
    variance-preserving student is written for `flowmap.load` alone: the steps of its pipeline are not those of the
    linear path.
    """
    from safetensors.torch import save_file

    if not isinstance(u, DiffusersFlowMap):
        raise TypeError(f"save: a {type(u).__name__} is not a network of flowmap_diffusers")
    folder = path / "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: w.cpu() for name, w in fused(u, dtype).items()}, folder / WEIGHTS, metadata={"format": "pt"})
    config = {key: value for key, value in u.net.config.items() if not key.startswith("_")}
    (folder / "config.json").write_text(json.dumps({"_class_name": "Student", **config}, indent=2) + "\n")
    known = {name: getattr(spec, name) for name in ("family", "gamma", "shift", "fps", "guidance")}
    (path / STUDENT).write_text(json.dumps(known, indent=2) + "\n")
    if spec.path is not None and not spec.row.latents_only:
        _pipeline(spec, Path(spec.path), path)
    if u.lora is not None and u.role == "student":
        files.save(path / "lora", u.trained(), u.lora, bases.about(spec, u))


def fused(u: DiffusersFlowMap, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of this role on its own, adapters added into the weights, in `dtype` but for what stays float32; as
    they are without one."""
    kept, tensors = exact(u.row, type(u.net)), {}
    for name, base, change in parts(u.net, u.adapter):
        weight = base if change is None else (base.float() + change).to(base.dtype if dtype is None else torch.float32)
        if dtype is not None and weight.is_floating_point():
            weight = weight.to(torch.float32 if kept.search(name) else dtype)
        tensors[name] = weight.contiguous()
    return tensors


def alone(
    u: DiffusersFlowMap, dtype: torch.dtype | None = None, computes: torch.dtype | None = None
) -> DiffusersFlowMap:
    """The network of this role on its own, adapters fused in, frozen. dtype: as `fused`; computes: or as it does."""
    computes, running = computes or u.computes, Running()
    net = hollow(u.row, {key: value for key, value in u.net.config.items() if not key.startswith("_")}, computes)
    embedder = u.net.get_submodule(u.row.times[0])
    hear(net, u.row, running, getattr(embedder, "gamma", None) if u.two_times else None, computes)
    tensors = fused(u, dtype)
    net.load_state_dict(tensors, assign=True)
    device = next(iter(tensors.values())).device
    for layer in net.modules():
        for name, buffer in layer._buffers.items():
            layer._buffers[name] = None if buffer is None else buffer.to(device)
    u.row.ready(net, device)
    told: dict[str, Any] = {"positions": u.positions, "computes": computes, "two_times": u.two_times}
    made = kind(u.row)(net.requires_grad_(False), u.row, u.role, running, **told, schedule=u.schedule)
    made.guidance, made.shapes = u.guidance, u.shapes
    return made.eval()


def rounded(u: DiffusersFlowMap, dtype: torch.dtype) -> DiffusersFlowMap:
    """The network that is saved in `dtype`, computing in float32; on the CPU."""
    made = alone(u, dtype, torch.float32).to("cpu")
    made.net.float()
    return made


def contents(spec: Settings, path: Path) -> dict[str, str]:
    """Of a directory that `save` wrote."""
    told = {"transformer/": "the network, a class of its own in `student.py`"}
    if (path / "student.py").is_file():
        told = {".": "the whole pipeline, `DiffusionPipeline.from_pretrained(DIR, trust_remote_code=True)`", **told}
    if (path / "lora").is_dir() and spec.lora is not None:
        made = f"Diffusers(BASE, family={spec.family!r}, lora=Lora({spec.lora.rank}, {spec.lora.alpha:g}))"
        told["lora/"] = (
            "the same adapters on their own, for the base that they were trained on, lifted to two times, and for no "
            f"other network: `{made}.load(DIR / 'lora', ...)` puts them there and refuses another base by its "
            "fingerprint. The transformer above has them already"
        )
    return told


def changes(spec: Settings, u: DiffusersFlowMap) -> Iterator[tuple[Tensor, Tensor]]:
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
        base = downloaded(str(base), ignore_patterns=["transformer/*"])
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
        paths={path: (int(path not in row.times),) if row.second else (0, 1) for path in row.embedders},
        second=(*row.second,),
        gamma=spec.gamma,
        scale=row.convention.scale,
        multiplies=row.multiplies,
        time=row.names[1],
        flip=(row.convention.clock == "1-t") != bool(row.schedule.get("invert_sigmas")),
        defaults=defaults,
        held=row.held is not None,
        begun="image=first, prompt=" if row.images else "",
    )


def load(spec: Settings, path: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
    """The student that `save` wrote: of its directory, or of its LoRA file on top of `spec.path`."""
    path = Path(path)
    if (path / "transformer").is_dir():
        student = evolve(spec, path=path, lora=None, base=None, config={})
        return student.build(frozenset({"student"}), device=device, dtype=dtype)["student"]
    file = path / LORA_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{path}: neither a student's directory (transformer/) nor a LoRA file ({file.name})")
    if spec.lora is None:
        raise ValueError(f"{file}: Diffusers.lora = None, but this is a LoRA file; give its rank and alpha")
    files.check_scale(file, spec.lora, "Diffusers")
    u, said = spec.build(frozenset({"student"}), device=device, dtype=dtype)["student"], files.of(file)
    assert isinstance(u, DiffusersFlowMap)
    bases.check(spec, u, file)
    files.put(file, files.load(file), u.trained(), "Diffusers")
    u.guidance = said.get("guidance")
    return u
