"""Adapters on disk, as peft and diffusers have them, and what they sit on: on another base they are another student."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowmap.mistaken import read
from flowmap.model import Rows, origin

from .quantised import weights
from .roles import INIT, Lora
from .start import LORA_FILE, located

WHOLE_FILE = "whole.safetensors"
"""Beside the LoRA file: what is trained in full, where something is."""
PREFIX = "transformer."
FILE = "base.json"
"""Beside the LoRA file; in the file's own metadata it is under `KEY`, for where the file goes alone."""
KEY = "flowmap"
ENTRIES = 1 << 16
"""Of a tensor, as many as are looked at: whoever trains or fuses it changes nearly all."""


def save(path: Path, layers: Mapping[str, Tensor], lora: Lora, about: dict[str, Any]) -> None:
    """`path/`: the LoRA file, rank and alpha in its metadata, and what is known `about` the base.

    layers: `blocks.0.to_q.lora_A.weight` and so on.
    """
    from safetensors.torch import save_file

    metadata = {"lora_adapter_metadata": json.dumps({f"{PREFIX}{k}": v for k, v in described(layers, lora).items()})}
    path.mkdir(parents=True, exist_ok=True)
    tensors = {f"{PREFIX}{name}": value.detach().cpu().contiguous() for name, value in layers.items()}
    save_file(tensors, path / LORA_FILE, metadata={"format": "pt", **metadata})
    write(path / LORA_FILE, about)


def described(layers: Iterable[str], lora: Lora) -> dict[str, Any]:
    """What peft is told of adapters with these tensors."""
    targets = sorted({name.rpartition(".lora_")[0] for name in layers})
    return {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": targets, **lora.patterns(targets)}


def declared(said: Mapping[str, Any], embedders: str) -> Lora:
    """A `Lora` that makes adapters of just those layers and ranks, of what `described` says. embedders: a regular
    expression of the layers that have them in any case."""
    names = [name for name in said["target_modules"] if not re.fullmatch(embedders, name)]
    ranks = {re.escape(name): rank for name, rank in said.get("rank_pattern", {}).items()}
    return Lora(said["r"], float(said["lora_alpha"]), targets="|".join(map(re.escape, names)), ranks=ranks)


def load(file: Path) -> dict[str, Tensor]:
    """The tensors of a LoRA file, as `save` was given them."""
    from safetensors.torch import load_file

    return {name.removeprefix(PREFIX): value for name, value in load_file(file).items()}


def scale(file: Path) -> float:
    """alpha / rank."""
    said = _said(file)
    found: float = said[f"{PREFIX}lora_alpha"] / said[f"{PREFIX}r"]
    return found


def _said(file: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        found: dict[str, Any] = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    return found


def check_scale(file: Path, lora: Lora, owner: str) -> None:
    """Rank and alpha are the file's to say: with others the same tensors are another student."""
    said = _said(file)
    for name, ours in (("r", lora.rank), ("lora_alpha", lora.alpha)):
        if (theirs := said.get(f"{PREFIX}{name}", ours)) != ours:
            raise ValueError(f"{file}: its {name} is {theirs}, {owner}.lora has {ours}: give the one it was made with")


def put(file: Path, tensors: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter], owner: str) -> None:
    """Every tensor of a LoRA file into its place in a network; a ValueError where one has none, or another shape."""
    if unknown := sorted(tensors.keys() ^ trained.keys()):
        raise ValueError(f"{file}: {len(unknown)} tensors do not match the adapters of {owner}, such as {unknown[0]!r}")
    with torch.no_grad():
        for name, p in trained.items():
            if p.shape != tensors[name].shape:
                raise ValueError(f"{file}: {name} is {tuple(tensors[name].shape)}: must be {tuple(p.shape)}")
            p.copy_(tensors[name])


def beside(init: str) -> dict[str, Tensor]:
    """The tensors of `WHOLE_FILE` beside a LoRA file, if there are some."""
    from safetensors.torch import load_file

    file = located(init, INIT).with_name(WHOLE_FILE)
    return load_file(file) if file.is_file() else {}


def fingerprint(net: nn.Module, without: Collection[str] = (), rows: Callable[[str], Rows] | None = None) -> str:
    """sha256 of the weights below all adapters, by name and shape, but for the modules `without`.

    rows: where the numbers are, of a network that has none itself.

    Of each tensor every n-th entry, n = ceil(size / 2^16), as bfloat16 rounds it: a base is one in either type.
    """
    found = hashlib.sha256()
    for name, shape, value, own in sorted(weights(net), key=lambda one: one[0]):
        if not isinstance(value, nn.Parameter) or name.rpartition(".")[0] in without:
            continue
        read = rows(name) if rows is not None else own
        numbers = value.detach() if read is None else read(slice(None))
        part = numbers.flatten()[:: -(-numbers.numel() // ENTRIES)].to(torch.bfloat16)
        found.update(f"{name} {shape}\n".encode())
        found.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


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
