"""The adapters of a student on disk: `lora/` in its directory, as `checkpoints.save_lora` writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from flowmap.export.errors import ExportError, ParityError
from flowmap.model import origin

from .checkpoints import BASE_FILE, LORA_FILE, WHOLE_FILE
from .streaming import stored

if TYPE_CHECKING:
    from flowmap.export.forms import Saved
    from flowmap.export.spec import Asked

PREFIX = "transformer."
SLACK = 1.1
"""Bounds to first order, and what was rounded twice."""
FUSED = 2.0**-18
"""What a sum of float32 products, over a few hundred ranks, was rounded to when it was fused."""
BASE = "base"
"""Option: the directory of the diffusers pipeline that the adapters were trained on; where it is now."""


@frozen(eq=False)
class Adapters:
    """ΔW = scale · B A of every layer, by the names of diffusers. about: what peft is told of them. base: its config,
    as far as no tensor shows it, and its name."""

    layers: Mapping[str, tuple[Tensor, Tensor]]
    scale: float
    about: Mapping[str, Any]
    base: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Adapters:
        from safetensors import safe_open

        require(folder)
        with safe_open(folder / "lora" / LORA_FILE, framework="pt") as file:
            tensors = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            said = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        about = {name.removeprefix(PREFIX): value for name, value in said.items()}
        names = sorted(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight"))
        pairs = {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in names}
        file = folder / "lora" / BASE_FILE
        base = json.loads(file.read_text()) if file.is_file() else {}
        if base.get("path") is not None:
            base["path"] = origin(base["path"])  # older ones have it whole
        return cls(pairs, about["lora_alpha"] / about["r"], about, base)

    def change(self, layer: str) -> Tensor:
        """ΔW, float64."""
        a, b = self.layers[layer]
        return self.scale * (b.double() @ a.double())

    def rounding(self, layer: str) -> Tensor:
        """By how much each entry of ΔW can be off, where A and B were rounded to what they are in, float64:

        |Δ(B A)| <= (|B| + δB) (|A| + δA) - |B| |A|,    δX = ε/2 |X| + the half of the smallest number.
        """
        a, b = (x.double().abs() for x in self.layers[layer])
        limits = torch.finfo(self.layers[layer][0].dtype)
        half = max(limits.eps, FUSED) / 2, limits.smallest_normal * limits.eps / 2
        return self.scale * ((b + half[0] * b + half[1]) @ (a + half[0] * a + half[1]) - b @ a)

    def to(self, dtype: torch.dtype) -> Adapters:
        """Rounded to what a file of that precision holds."""
        return evolve(self, layers={name: (a.to(dtype), b.to(dtype)) for name, (a, b) in self.layers.items()})

    def tensors(self) -> dict[str, Tensor]:
        """As peft has them, without the scale."""
        pairs = {name: {"A": a, "B": b} for name, (a, b) in self.layers.items()}
        return {f"{name}.lora_{x}.weight": w for name, pair in pairs.items() for x, w in pair.items()}


def require(folder: Path) -> None:
    """An `ExportError` where the student has no adapters, or not adapters alone."""
    if not (folder / "lora" / LORA_FILE).is_file():
        raise ExportError(
            f"{folder}: has no adapters (lora/{LORA_FILE}), so its weights were trained whole: their change is of full "
            "rank and no LoRA; export it --to diffusers"
        )
    if (whole := folder / "lora" / WHOLE_FILE).is_file():
        from safetensors import safe_open

        with safe_open(whole, framework="pt") as file:
            names = sorted({name.rpartition(".")[0] for name in file.keys()})  # noqa: SIM118
        raise ExportError(
            f"{folder}: {', '.join(names)} is trained in full beside the adapters, which a LoRA file cannot hold: "
            "export it --to diffusers"
        )


def base_of(student: Saved, asked: Asked) -> Path | None:
    """Where the base is, if it was named or its run says so; an `ExportError` where it was named and is not."""
    named = asked.options.get(BASE)
    if named is not None and not (Path(named) / "transformer").is_dir():
        raise ExportError(f"base = {str(named)!r}: has no transformer/: must be the directory of a diffusers pipeline")
    path = named or student.recipe.get("backbone", {}).get("path")
    return Path(path) if path and (Path(path) / "transformer").is_dir() else None


def compared(adapters: Adapters, student: Saved, asked: Asked) -> float | None:
    """How far W_base + ΔW is from the student's W at most, of the largest entry of each, where the base is here.

    A `ParityError` where an entry is off by more than its own rounding, of W and W_base to what the student is stored
    in and of the adapters to what the file is in: then the adapters are another student's, or the base is. An entry's
    own, since ΔW is small beside the largest of W, and may be less than that one's rounding.
    """
    base = base_of(student, asked)
    if base is None or not asked.check:
        return None
    theirs, ours, worst = stored(str(base)), stored(str(student.folder)), 0.0
    for name in adapters.layers:
        plain = name.replace(".delta_embedder.", ".time_embedder.")  # a lifted network's is a copy
        weight = theirs[f"{name}.weight" if f"{name}.weight" in theirs else f"{plain}.weight"][:].double()
        wanted = ours[f"{name}.weight"][:]
        off = (weight + adapters.change(name) - wanted.double()).abs()
        limits = torch.finfo(wanted.dtype)
        stored_in = limits.eps * (wanted.double().abs() + weight.abs()) / 2 + limits.smallest_normal * limits.eps
        allowed = SLACK * (stored_in + adapters.rounding(name))
        error = float(off.max() / wanted.abs().max())
        if not (off <= allowed).all():
            times = float((off / allowed).max())
            raise ParityError(
                f"{base} with the adapters in {student.folder / 'lora'} is not the student: {name}.weight is off by "
                f"{error:.1e} of its largest entry, an entry by {times:.3g} times what rounding explains; give the "
                "base that it was trained on, base = ..."
            )
        worst = max(worst, error)
    return worst
