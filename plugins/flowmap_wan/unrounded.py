"""A student from its base and its adapters, where both are here: as it was trained, whatever it is stored in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, fields_dict
from flowmap_diffusers.folder import local
from flowmap_diffusers.loading import stored
from flowmap_lora.files import declared
from flowmap_lora.files import of as of_base
from flowmap_lora.start import LORA_FILE

from flowmap import FlowMap
from flowmap.model import Sampling

from . import checkpoints
from .adapters import Adapters
from .network import WanFlowMap
from .outline import dtype_of
from .targets import TIMES

if TYPE_CHECKING:
    from .settings import WanSettings

FIELDS = {
    "gate_value": "gamma",
    "deltatime_type": "delta",
    "full_chunk_limit": "full",
    "chunk_partition": "partition",
}
"""Of base.json: what a spec calls it."""
ROWS = slice(0, 8)


def load(spec: WanSettings, path: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
    """The student in `path`: `of` its base and adapters, or as `checkpoints.load` gives it."""
    path = Path(path)
    u = None if spec.expert is not None else of(spec, path, device=device, dtype=dtype)
    return checkpoints.load(spec, path, device=device, dtype=dtype) if u is None else u


def of(spec: WanSettings, path: Path, *, device: torch.device, dtype: torch.dtype) -> WanFlowMap | None:
    """The student in `path`, with its adapters apart from its base; None where these are not here, and where nothing is
    lost without: neither in `dtype`, nor in what the student is stored in."""
    base = _base(spec, path, dtype)
    if base is None:
        return None
    file = path / "lora" / LORA_FILE
    # in one of the two types in which a base has its fingerprint
    narrow = of_base(file)["dtype"] == "bfloat16" or dtype == torch.bfloat16
    u = checkpoints.load_lora(base, file, device=device, dtype=torch.bfloat16 if narrow else torch.float32)
    assert isinstance(u, WanFlowMap)
    u.guidance, u.history_noise = (own := Sampling.of(path)).guidance, own.history_noise
    for name, p in u.net.named_parameters():
        if ".lora_" not in name:
            p.data = p.data.to(dtype_of(name, type(u.net), dtype))
    return u.requires_grad_(False)


def _base(spec: WanSettings, path: Path, dtype: torch.dtype) -> WanSettings | None:
    """The spec of the base, as it was in training; None where it is not here, or not needed."""
    file = path / "lora" / LORA_FILE
    if not (path / "transformer").is_dir() or not file.is_file() or "dtype" not in of_base(file):
        return None
    adapters, ours = Adapters.on_disk(path), stored(str(path))
    kept = {ours[f"{name}.weight"][:1].dtype for name in adapters.layers if f"{name}.weight" in ours}
    if dtype == torch.float32 and kept == {torch.float32}:
        return None  # fused, and not rounded
    for folder in _places(spec, path, adapters):
        here = local(folder)
        if here is not None and here.resolve() != path.resolve() and _same(adapters, here, ours):
            given = {FIELDS[key]: value for key, value in adapters.base.items() if key in FIELDS}
            known = {name: value for name, value in given.items() if name in fields_dict(type(spec))}
            lora = declared(adapters.about, TIMES)
            return evolve(spec, path=str(here), pretrained=True, lora=lora, base=None, **known)
    return None


def _places(spec: WanSettings, path: Path, adapters: Adapters) -> list[str]:
    """Where the base may be: as a recipe says, the one beside the student's directory too; or by its hub id."""
    file = path.resolve().parent / "recipe.json"
    recipe = json.loads(file.read_text()) if file.is_file() else {}
    places = (spec.path, recipe.get("backbone", {}).get("path"), adapters.base.get("path"))
    return [place for place in places if place]


def _same(adapters: Adapters, base: Path, student: dict[str, Any]) -> bool:
    """Whether base and adapters are the student, by a few rows of every layer."""
    if not (base / "transformer").is_dir():
        return False
    try:
        theirs = stored(str(base))
        beside = (adapters.beside(name, theirs, student, ROWS) for name in adapters.layers)
        return all(bool((off <= allowed).all()) for off, allowed, _ in beside)
    except (KeyError, ValueError, RuntimeError):  # of another shape
        return False
