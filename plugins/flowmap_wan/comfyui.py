"""A student at a fixed number of steps, as a LoRA of plain Wan: for ComfyUI, and for diffusers' `WanPipeline`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from flowmap_diffusers.loading import stored
from torch import Tensor
from torch.nn import functional as F

from flowmap.export.errors import ExportError
from flowmap.export.forms import Written
from flowmap.export.spec import DTYPES
from flowmap.model import sha256

from . import adapters, readme
from .adapters import Adapters
from .build import flow_map, pretrained
from .extract import at
from .fixed_step import Embedder, Pair, Schedule, embedder, grid, solve, wanted
from .forms import transformer_of
from .names import original
from .network import WanFlowMap

if TYPE_CHECKING:
    from flowmap.export.forms import Saved
    from flowmap.export.spec import Asked

STEPS = 4
OPTIONS = ("steps", "shift", "times", adapters.BASE, adapters.RANK, "with_base", "full_time")
LAST = "time_embedding.2"
FULL = "condition_embedder.time_embedder.linear_2.diff"
"""Its whole change, by the name that FastVideo 0.2 resolves: that of diffusers, other than for pairs."""
TIMES = ("condition_embedder.time_embedder.", "condition_embedder.delta_embedder.")
"""What the schedule takes in."""


@frozen
class FixedStepLora:
    """`comfyui`: one file that ComfyUI's LoRA loader and `WanPipeline.load_lora_weights` both read.

    The adapters of the blocks are carried over; those of the two time embedders, and the second embedder itself, become
    one pair on the last layer of Wan's own, which is right at the times of one schedule: `fixed_step`. Keys are Wan's
    own names after `diffusion_model.`, with `lora_down` and `lora_up`, which every release of either reads, and without
    `alpha`, which diffusers does not take for a time embedder: alpha / rank is in `lora_up`.

    Options: steps (4) and shift (the student's), or times, t_0 > t_1 > ... > 0; base, to compare with; rank, to extract
    adapters of it from student - base; with_base, to write the base too, under the names that ComfyUI loads;
    full_time, for FastVideo, which puts no LoRA on embedders: the change of the time embedding whole, under its name.
    """

    def check(self, student: Saved, asked: Asked) -> None:
        name = transformer_of(student.folder)["_class_name"]
        if "FAR" in name:
            raise ExportError(
                f"{student.folder}: a causal student makes a video in chunks, and plain Wan has none: no LoRA turns it "
                "into this student; export it --to diffusers"
            )
        if "gate_value" not in transformer_of(student.folder):
            raise ExportError(f"{student.folder}: its transformer is a {name}, which has one time: not a student")
        if student.sampler["sampler"] != "flow_map":
            raise ExportError(
                f"{student.folder}: a {student.sampler['sampler']} student jumps to data and renews the noise, and a "
                "fixed-step LoRA is sampled with Euler: export it --to diffusers"
            )
        asked.known("comfyui", OPTIONS)
        schedule(student, asked)
        adapters.check(student, asked)
        if adapters.RANK not in asked.options:
            plain(found := Adapters.read(student.folder), student.folder)
            for layer in found.layers:
                original(layer.replace(".delta_embedder.", ".time_embedder."))
        elif two_times(base := adapters.named_base(student, asked)):
            raise ExportError(
                f"base = {str(base)!r}: is a student itself, and the file is for plain Wan: give the Wan pipeline that "
                "it was made of"
            )
        if asked.options.get("with_base") and adapters.base_of(student, asked) is None:
            raise ExportError("with_base: the base is not here: give its pipeline, base = ... (--base DIR)")

    def write(self, student: Saved, asked: Asked, out: Path) -> Written:
        from safetensors.torch import save_file

        (found, extracted), planned = adapters.of(student, asked), schedule(student, asked)
        here = adapters.base_of(student, asked)
        own = plain(found, student.folder) if extracted is None else embedder(stored(str(here)), "time_embedder")
        pair = frozen_time(own, student.folder, planned)
        dtype, extra = DTYPES[asked.precision], {}
        full = bool(asked.options.get("full_time"))
        tensors = {f"diffusion_model.{k}": v for k, v in carried(found, pair, dtype, full=full).items()}
        if extracted is None:
            weights = adapters.compared(found.to(dtype), student, asked)
        else:
            extra, make = extracted.told(()), partial(with_lora, student, adapters.named_base(student, asked), tensors)
            weights = adapters.measured(student, asked, make, [*pairwise(planned.times)], [planned.times], extra)
        if with_base := bool(asked.options.get("with_base")):
            save_file(renamed(stored(str(here))), out / readme.BASE, metadata={"format": "pt"})
        base, told = found.base.get("path"), planned.sampler()
        about = {"format": "pt", "flowmap": json.dumps({**told, "base": base})}
        file = f"fixed_{planned.steps}_steps.safetensors"
        save_file(tensors, out / file, metadata=about)
        said = readme.fixed_step(file, planned, base, readme.size_of(student)) + readme.extracted(extra)
        told_too = {readme.ALONE: found.rest, readme.FOR_FASTVIDEO: full, readme.WITH_BASE: with_base}
        (out / "README.txt").write_text(said + "".join(text for text, there in told_too.items() if there))
        of_time = {"rank_of_time": len(pair.a), "error_of_time": pair.error, "gain_of_time": pair.gain}
        told |= {"built_in_guidance": student.sampler["built_in_guidance"]}
        return Written(sha256(tensors), told, {"base": base, **of_time, **extra}, max(pair.error, weights or 0.0))


def schedule(student: Saved, asked: Asked) -> Schedule:
    """As asked for, or an `ExportError`."""
    given = asked.options
    times = given.get("times")
    if times is None:
        steps, s = given.get("steps", STEPS), given.get("shift", student.sampler["shift"])
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 100:
            raise ExportError(f"steps = {steps!r}: must be an integer from 1 to 100")
        if not _number(s) or not 0 < s < math.inf:
            raise ExportError(f"shift = {s!r}: must be a number above 0")
        return Schedule(grid(steps, float(s)), float(s))
    if clash := sorted({"steps", "shift"} & given.keys()):
        raise ExportError(f"times and {clash[0]} were both given: times say all")
    numbers = isinstance(times, Sequence) and len(times) > 0 and all(map(_number, times))
    listed = [float(t) for t in times] if numbers else []
    if listed and listed[-1] != 0.0:
        listed.append(0.0)
    if len(listed) < 2 or not all(1.0 >= a > b for a, b in pairwise(listed)) or listed[-1] != 0.0:
        raise ExportError(f"times = {times!r}: must be numbers that decrease, from at most 1 to above 0 or a last 0")
    return Schedule(tuple(listed), None)


def _number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def plain(found: Adapters, folder: Path) -> Embedder:
    """The time embedder of the base: the student's without its adapters, to float32.

    An `ExportError` where the student began as a student: its base has two embedders that differ, and is not Wan.
    """
    tensors = stored(str(folder))
    time, delta = (_without(found, embedder(tensors, f"{name}_embedder"), name) for name in ("time", "delta"))
    rounding = torch.finfo(tensors["condition_embedder.delta_embedder.linear_1.weight"][:1].dtype).eps
    for a, b in ((time.w1, delta.w1), (time.w2, delta.w2)):
        if not (a - b).abs().max() <= max(1e-4, 4 * rounding) * a.abs().max():
            raise ExportError(
                f"{folder}: its adapters sit on a student and not on plain Wan, so a LoRA of plain Wan would have to "
                "hold that student's change too: export it --to diffusers"
            )
    return time


def frozen_time(base: Embedder, folder: Path, planned: Schedule) -> Pair:
    """The pair on the last layer of the base's time embedder."""
    tensors, config = stored(str(folder)), transformer_of(folder)
    now, then = (embedder(tensors, f"{name}_embedder") for name in ("time", "delta"))
    e = wanted(now, then, planned.times, config["gate_value"], config["deltatime_type"])
    return solve(base, planned.times, e)


def carried(found: Adapters, pair: Pair, dtype: torch.dtype, *, full: bool = False) -> dict[str, Tensor]:
    """Every change under Wan's own names; that of the time in float32, whatever the others are.

    Pairs are filled up with zeros to the largest rank: loaders that meet two ranks and no alpha have taken that of one
    for that of all, and scaled the other by their ratio. What is no matrix is there whole, as a difference, and
    so is the time where it is asked for in `full`.
    """
    made = {}
    for layer, (a, b) in found.layers.items():
        if not layer.startswith(TIMES):
            made[original(layer)] = a.to(dtype), (found.scale * b.double()).to(dtype)
    if not full:
        made[LAST] = pair.a, pair.b
    rank = max((len(a) for a, _ in made.values()), default=0)
    made = {k: (F.pad(a, (0, 0, 0, rank - len(a))), F.pad(b, (0, rank - len(a)))) for k, (a, b) in made.items()}
    names = (("down", 0), ("up", 1))
    pairs = {f"{name}.lora_{x}.weight": made[name][i].contiguous() for name in made for x, i in names}
    rest = {difference(name): change.to(dtype) for name, change in found.rest.items() if not name.startswith(TIMES)}
    return pairs | rest | ({FULL: pair.b @ pair.a} if full else {})


def difference(name: str) -> str:
    """The key of a whole change: `blocks.0.modulation.diff`, `head.head.diff_b`."""
    own = original(name)
    return own.removesuffix(".bias") + ".diff_b" if own.endswith(".bias") else own.removesuffix(".weight") + ".diff"


@torch.no_grad()
def with_lora(student: Saved, base: Path, tensors: Mapping[str, Tensor]) -> WanFlowMap:
    """Plain Wan with a file's tensors, as ComfyUI adds them."""
    spec = at(student, base)
    net = pretrained(spec, torch.float32)
    for name, p in net.named_parameters():
        layer = f"diffusion_model.{original(name).removesuffix('.weight')}"
        if (up := tensors.get(f"{layer}.lora_up.weight")) is not None:
            p += (up.float().flatten(1) @ tensors[f"{layer}.lora_down.weight"].float().flatten(1)).view_as(p)
        for key in {difference(name), f"{name.removesuffix('.weight')}.diff"}:
            if (change := tensors.get(f"diffusion_model.{key}")) is not None:
                p += change
    return flow_map(spec, net, "teacher", two_times=False, student=False)


def two_times(base: Path) -> bool:
    return "gate_value" in transformer_of(base)


def renamed(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """A transformer under Wan's own names, as it is stored."""
    return {original(name): part[:] for name, part in tensors.items()}


def _without(found: Adapters, fused: Embedder, name: str) -> Embedder:
    of = f"condition_embedder.{name}_embedder.linear_"
    change = [found.change(f"{of}{i}") if f"{of}{i}" in found.layers else 0.0 for i in (1, 2)]
    return evolve(fused, w1=fused.w1 - change[0], w2=fused.w2 - change[1])
