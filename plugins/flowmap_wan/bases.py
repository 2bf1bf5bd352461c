"""What adapters sit on, and what tells it from another base: on another one they are another student."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flowmap.mistaken import read
from flowmap.model import origin

if TYPE_CHECKING:
    from .network import WanFlowMap
    from .settings import WanSettings

FILE = "base.json"
"""Beside the LoRA file; in the file's own metadata it is under `KEY`, for where the file goes alone."""
KEY = "flowmap"
UNSEEN = ("gate_value", "deltatime_type", "full_chunk_limit", "chunk_partition")
"""Of the base's config, what no tensor shows."""
ENTRIES = 1 << 16
"""Of a tensor, as many as are looked at: whoever trains or fuses it changes nearly all."""


def fingerprint(net: nn.Module, without: Collection[str] = ()) -> str:
    """sha256 of the weights below all adapters, by name and shape, but for the modules `without`.

    Of each tensor every n-th entry, n = ceil(size / 2^16), as bfloat16 rounds it: a base is one in either type.
    """
    found = hashlib.sha256()
    for name, value in sorted((name.replace(".base_layer.", "."), p) for name, p in net.named_parameters()):
        if ".lora_" in name or name.rpartition(".")[0] in without:
            continue
        part = value.detach().flatten()[:: -(-value.numel() // ENTRIES)].to(torch.bfloat16)
        found.update(f"{name} {tuple(value.shape)}\n".encode())
        found.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def about(u: WanFlowMap, path: str | None) -> dict[str, Any]:
    """What is written of the base of a student, which is at `path`, and of the guidance that its adapters brought."""
    dtype = str(u.dtype).split(".")[1]  # that the base was in
    return {**_seen(u), "guidance": u.guidance, "dtype": dtype, "path": None if path is None else origin(path)}


def write(file: Path, about: dict[str, Any]) -> None:
    """Into the metadata of a LoRA file, beside what is there, and into `base.json`."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    save_file(load_file(file), file, metadata={**metadata, KEY: json.dumps(about)})
    file.with_name(FILE).write_text(json.dumps(about))


def of(file: Path) -> dict[str, Any]:
    """What is known of the base of a LoRA file; nothing, of another's."""
    from safetensors import safe_open

    found = read(file.with_name(FILE))
    if not found:
        with safe_open(file, framework="pt") as opened:
            found = json.loads((opened.metadata() or {}).get(KEY, "{}"))
    if found.get("path") is not None:
        found["path"] = origin(found["path"])  # older ones have it whole
    return found


def check(spec: WanSettings, u: WanFlowMap, file: Path) -> None:
    """A ValueError where `u`, on the base of `spec`, is not what the adapters in a LoRA file were trained on."""
    theirs, ours = of(file), _seen(u)
    for name in [name for name in ours if name in theirs and theirs[name] != ours[name]]:
        if name != "fingerprint":
            raise ValueError(
                f"{file}: its {name} is {theirs[name]}, that of {type(spec).__name__} is {ours[name]}: give the one it "
                "was made with"
            )
        trained = f", {theirs['path']!r}" if theirs.get("path") else ""
        raise ValueError(
            f"{file}: its adapters were trained on other weights than those of {spec.path or 'this spec'} (fingerprint "
            f"{theirs[name][:12]}, not {ours[name][:12]}): give {type(spec).__name__} the base that they were trained "
            f"on{trained}; a student's directory has them fused already"
        )


def _seen(u: WanFlowMap) -> dict[str, Any]:
    said = {key: u.net.config[key] for key in UNSEEN if key in u.net.config}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in said.items()}
    return {**plain, "fingerprint": fingerprint(u.net, u.whole)}
