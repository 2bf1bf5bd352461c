"""A student's adapters: those on disk, `lora/` in its directory as `checkpoints.save_lora` writes it, or extracted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, field, frozen
from flowmap_diffusers.loading import stored
from flowmap_lora.files import WHOLE_FILE
from flowmap_lora.files import of as of_base
from flowmap_lora.start import LORA_FILE
from torch import Tensor

from flowmap.export.errors import ExportError, ParityError
from flowmap.model import origin

from . import extract
from .fidelity import Times, fidelity
from .outline import dtype_of

if TYPE_CHECKING:
    from flowmap.export.forms import Saved
    from flowmap.export.spec import Asked
    from flowmap.model import FlowMap

    from .extract import Found

PREFIX = "transformer."
SLACK = 1.1
"""Bounds to first order, and what was rounded twice."""
FUSED = 2.0**-18
"""What a sum of float32 products, over a few hundred ranks, was rounded to when it was fused."""
ALL = slice(None)
RANK = "rank"
"""Option: extract adapters of that rank from the difference of student and base, whether or not there are some."""
BASE = "base"
"""Option: the directory of the diffusers pipeline that the adapters were trained on; where it is now."""


@frozen(eq=False)
class Adapters:
    """ΔW = scale · B A of every layer, by the names of diffusers. about: what peft is told of them. base: its config,
    as far as no tensor shows it, and its name. rest: the change of what is no matrix, by tensor; none of those on disk.
    """

    layers: Mapping[str, tuple[Tensor, Tensor]]
    scale: float
    about: Mapping[str, Any]
    base: Mapping[str, Any]
    rest: Mapping[str, Tensor] = field(factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Adapters:
        """Of a student that is adapters alone."""
        require(folder)
        return cls.on_disk(folder)

    @classmethod
    def on_disk(cls, folder: Path) -> Adapters:
        """Of any student that has adapters."""
        from safetensors import safe_open

        with safe_open(folder / "lora" / LORA_FILE, framework="pt") as file:
            tensors = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            said = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        about = {name.removeprefix(PREFIX): value for name, value in said.items()}
        names = sorted(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight"))
        pairs = {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in names}
        return cls(pairs, about["lora_alpha"] / about["r"], about, of_base(folder / "lora" / LORA_FILE))

    def change(self, layer: str, rows: slice = ALL) -> Tensor:
        """ΔW, float64; of a convolution, too."""
        a, b = self.layers[layer]
        return (self.scale * (b[rows].double().flatten(1) @ a.double().flatten(1))).unflatten(1, a.shape[1:])

    def rounding(self, layer: str, rows: slice = ALL) -> Tensor:
        """By how much each entry of ΔW can be off, where A and B were rounded to what they are in, float64:

        |Δ(B A)| <= (|B| + δB) (|A| + δA) - |B| |A|,    δX = ε/2 |X| + the half of the smallest number.
        """
        a, b = (x.double().abs() for x in self.layers[layer])
        b = b[rows]
        limits = torch.finfo(self.layers[layer][0].dtype)
        half = max(limits.eps, FUSED) / 2, limits.smallest_normal * limits.eps / 2
        return self.scale * ((b + half[0] * b + half[1]) @ (a + half[0] * a + half[1]) - b @ a)

    def beside(
        self, layer: str, base: Mapping[str, Any], student: Mapping[str, Any], rows: slice = ALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(how far W_base + ΔW is from the student's W, how far rounding may have brought it, W), of some rows."""
        from diffusers import AnyFlowTransformer3DModel

        plain = layer.replace(".delta_embedder.", ".time_embedder.")  # a lifted network's is a copy
        weight = base[f"{layer}.weight" if f"{layer}.weight" in base else f"{plain}.weight"][rows]
        weight = weight.to(dtype_of(layer, AnyFlowTransformer3DModel, self.dtype or weight.dtype)).double()
        wanted = student[f"{layer}.weight"][rows]
        off = (weight + self.change(layer, rows) - wanted.double()).abs()
        limits = torch.finfo(wanted.dtype)
        stored_in = limits.eps * (wanted.double().abs() + weight.abs()) / 2 + limits.smallest_normal * limits.eps
        return off, SLACK * (stored_in + self.rounding(layer, rows)), wanted

    @property
    def dtype(self) -> torch.dtype | None:
        """What the base was in while they were trained; None where nothing says it."""
        return getattr(torch, self.base["dtype"]) if "dtype" in self.base else None

    def to(self, dtype: torch.dtype) -> Adapters:
        """Rounded to what a file of that precision holds."""
        layers = {name: (a.to(dtype), b.to(dtype)) for name, (a, b) in self.layers.items()}
        return evolve(self, layers=layers, rest={name: change.to(dtype) for name, change in self.rest.items()})

    def tensors(self) -> dict[str, Tensor]:
        """As peft has them, without the scale; with biases, every layer has one."""
        pairs = {name: {"A": a, "B": b} for name, (a, b) in self.layers.items()}
        made = {f"{name}.lora_{x}.weight": w for name, pair in pairs.items() for x, w in pair.items()}
        if not self.rest:
            return made
        biases = {name: self.rest.get(f"{name}.bias", b.new_zeros(len(b))) for name, (_, b) in self.layers.items()}
        return made | {f"{name}.lora_B.bias": bias for name, bias in biases.items()}

    def of(self, name: str) -> Tensor | None:
        """The change of a tensor, None where it has none."""
        layer, _, kind = name.rpartition(".")
        return self.change(layer) if kind == "weight" and layer in self.layers else self.rest.get(name)

    def biases(self) -> Adapters:
        """Of what is no matrix, the biases of layers alone, which is what peft can hold."""
        kept = {name: self.rest[name] for layer in self.layers if (name := f"{layer}.bias") in self.rest}
        return evolve(self, rest=kept, about={**self.about, **({"lora_bias": True} if kept else {})})


def of(student: Saved, asked: Asked) -> tuple[Adapters, Found | None]:
    """Those on disk, or those of the rank that is asked for, with what is known of them."""
    if RANK not in asked.options:
        return Adapters.read(student.folder), None
    base = named_base(student, asked)
    found = extract.changes(student, base, asked.options[RANK])
    about = {"r": found.rank, "lora_alpha": found.rank, "target_modules": list(found.pairs)}
    return Adapters(found.pairs, 1.0, about, {"path": origin(base)}, found.rest), found


def check(student: Saved, asked: Asked) -> None:
    """An `ExportError` where there are none and none can be made, before anything is loaded."""
    if RANK not in asked.options:
        require(student.folder)
        base_of(student, asked)
        return
    rank = asked.options[RANK]
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ExportError(f"rank = {rank!r}: must be an integer of at least 1")
    extract.check(student, named_base(student, asked))


def measured(
    student: Saved,
    asked: Asked,
    make: Callable[[], FlowMap],
    calls: Sequence[tuple[float, float]],
    grids: Sequence[Times],
    told: dict[str, Any],
) -> float | None:
    """What extracted adapters are off the student in what it computes, in `told` too; a `ParityError` beyond bounds."""
    if not asked.check:
        return None
    found = fidelity(student, make, calls, grids)
    found.require(asked.options[RANK])
    told["extracted"] |= {"outputs": dict(found.errors), "outputs_in_bf16": dict(found.bf16)}
    return found.worst


def named_base(student: Saved, asked: Asked) -> Path:
    """The base that a change is taken from."""
    if (base := base_of(student, asked)) is None:
        raise ExportError(
            f"rank = {asked.options[RANK]}: adapters are what the student has changed of its base: give the pipeline "
            "that it was trained from, base = ... (--base DIR)"
        )
    return base


def require(folder: Path) -> None:
    """An `ExportError` where the student has no adapters, or not adapters alone."""
    if not (folder / "lora" / LORA_FILE).is_file():
        raise ExportError(
            f"{folder}: has no adapters (lora/{LORA_FILE}): its weights were trained whole, or saved with the adapters "
            "fused in. Give its base and a rank (base, rank; --base DIR --rank N) for a LoRA out of the difference, or "
            "export it --to diffusers"
        )
    if fused := of_base(folder / "lora" / LORA_FILE).get("fused"):
        raise ExportError(
            f"{folder}: its adapters sit on a base that {fused!r} was fused into, which a LoRA file of them cannot "
            "hold: export it --to diffusers, or give the base and a rank (--base DIR --rank N) for a LoRA of both"
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

    W_base in the type that the adapters were trained on.

    A `ParityError` where an entry is off by more than its own rounding, of W and W_base to what the student is stored
    in and of the adapters to what the file is in: then the adapters are another student's, or the base is. An entry's
    own, since ΔW is small beside the largest of W, and may be less than that one's rounding.
    """
    base = base_of(student, asked)
    if base is None or not asked.check:
        return None
    theirs, ours, worst = stored(str(base)), stored(str(student.folder)), 0.0
    for name in adapters.layers:
        off, allowed, wanted = adapters.beside(name, theirs, ours)
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
