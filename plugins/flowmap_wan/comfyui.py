"""A student at a fixed number of steps, as a LoRA of plain Wan: for ComfyUI, and for diffusers' `WanPipeline`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor
from torch.nn import functional as F

from flowmap.export.errors import ExportError
from flowmap.export.forms import Written
from flowmap.export.spec import DTYPES
from flowmap.model import sha256

from . import adapters
from .adapters import Adapters
from .fixed_step import Embedder, Pair, embedder, grid, solve, wanted
from .forms import size_of, transformer_of
from .streaming import stored

if TYPE_CHECKING:
    from flowmap.export.forms import Saved
    from flowmap.export.spec import Asked

STEPS = 4
LAST = "time_embedding.2"
PARTS: Mapping[str, str] = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
"""Of a layer's name: as diffusers has it, as Wan's own files and ComfyUI have it."""
LAYER = re.compile(r"blocks\.(\d+)\.(?:(attn[12])\.(to_[qkv]|to_out\.0)|(ffn\.net\.0\.proj|ffn\.net\.2))")


@frozen
class Schedule:
    """times: t_0 > ... > t_N = 0. shift: None where they were given one by one."""

    times: tuple[float, ...]
    shift: float | None

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    def sampler(self) -> dict[str, Any]:
        """In ComfyUI's words."""
        scheduler = "custom sigmas" if self.shift is None else "simple"
        told = {"sampler": "euler", "scheduler": scheduler, "steps": self.steps, "shift": self.shift, "cfg": 1.0}
        return {**told, "sigmas": list(self.times), "timesteps": [1000.0 * t for t in self.times[:-1]]}


@frozen
class FixedStepLora:
    """`comfyui`: one file that ComfyUI's LoRA loader and `WanPipeline.load_lora_weights` both read.

    The adapters of the blocks are carried over; those of the two time embedders, and the second embedder itself, become
    one pair on the last layer of Wan's own, which is right at the times of one schedule: `fixed_step`. Keys are Wan's
    own names after `diffusion_model.`, with `lora_down` and `lora_up`, which every release of either reads, and without
    `alpha`, which diffusers does not take for a time embedder: alpha / rank is in `lora_up`.

    Options: steps (4) and shift (the student's), or times, t_0 > t_1 > ... > 0; base, to compare with.
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
        asked.known("comfyui", ("steps", "shift", "times", adapters.BASE))
        schedule(student, asked)
        adapters.require(student.folder)
        found = Adapters.read(student.folder)
        for layer in found.layers:
            original(layer)
        adapters.base_of(student, asked)
        plain(found, student.folder)

    def write(self, student: Saved, asked: Asked, out: Path) -> Written:
        from safetensors.torch import save_file

        found, planned = Adapters.read(student.folder), schedule(student, asked)
        pair = frozen_time(found, student.folder, planned)
        weights = adapters.compared(found.to(DTYPES[asked.precision]), student, asked)
        tensors = {f"diffusion_model.{k}": v for k, v in carried(found, pair, DTYPES[asked.precision]).items()}
        base, told = found.base.get("path"), planned.sampler()
        about = {"format": "pt", "flowmap": json.dumps({**told, "base": base})}
        file = f"fixed_{planned.steps}_steps.safetensors"
        save_file(tensors, out / file, metadata=about)
        (out / "README.txt").write_text(_text(file, planned, base, size_of(student)))
        config = {"base": base, "rank_of_time": len(pair.a), "error_of_time": pair.error, "gain_of_time": pair.gain}
        told |= {"built_in_guidance": student.sampler["built_in_guidance"]}
        return Written(sha256(tensors), told, config, max(pair.error, weights or 0.0))


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


def frozen_time(found: Adapters, folder: Path, planned: Schedule) -> Pair:
    """The pair on the last layer of the base's time embedder."""
    tensors, config = stored(str(folder)), transformer_of(folder)
    now, then = (embedder(tensors, f"{name}_embedder") for name in ("time", "delta"))
    e = wanted(now, then, planned.times, config["gate_value"], config["deltatime_type"])
    return solve(plain(found, folder), planned.times, e)


def carried(found: Adapters, pair: Pair, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every pair under Wan's own names; that of the time in float32, whatever the others are.

    It is filled up with zeros to the rank of the others: loaders that meet two ranks and no alpha have taken that of
    one for that of all, and scaled the other by their ratio.
    """
    made = {}
    for layer, (a, b) in found.layers.items():
        if (name := original(layer)) is not None:
            made[name] = a.to(dtype), (found.scale * b.double()).to(dtype)
    more = max(0, max((len(a) for a, _ in made.values()), default=0) - len(pair.a))
    made[LAST] = F.pad(pair.a, (0, 0, 0, more)), F.pad(pair.b, (0, more))
    names = (("down", 0), ("up", 1))
    return {f"{name}.lora_{x}.weight": made[name][i].contiguous() for name in made for x, i in names}


def original(layer: str) -> str | None:
    """`blocks.0.self_attn.q` of `blocks.0.attn1.to_q`; None of a time embedder's, which the schedule takes in."""
    if layer.startswith(("condition_embedder.time_embedder.", "condition_embedder.delta_embedder.")):
        return None
    found = LAYER.fullmatch(layer)
    if found is None:
        raise ExportError(f"the adapters of {layer}: ComfyUI and diffusers read none of that layer of Wan")
    number, attention, projection, ffn = found.groups()
    return f"blocks.{number}." + (PARTS[ffn] if ffn else f"{PARTS[attention]}.{PARTS[projection]}")


def _without(found: Adapters, fused: Embedder, name: str) -> Embedder:
    of = f"condition_embedder.{name}_embedder.linear_"
    change = [found.change(f"{of}{i}") if f"{of}{i}" in found.layers else 0.0 for i in (1, 2)]
    return evolve(fused, w1=fused.w1 - change[0], w2=fused.w2 - change[1])


def _text(file: str, planned: Schedule, base: str | None, size: str) -> str:
    n, s = planned.steps, planned.shift
    sigmas = ", ".join(f"{t:.6g}" for t in planned.times)
    of = f"It was made for {base}." if base else "It fits the Wan model that the student was trained from."
    asked = "these sigmas, as custom sigmas" if s is None else f"shift {s:g}, scheduler simple"
    comfy = (
        f"KSampler (steps {n}, cfg 1, euler, simple, denoise 1) behind ModelSamplingSD3 (shift {s:g})."
        if s is not None
        else "SamplerCustomAdvanced with KSamplerSelect (euler), these sigmas, and cfg 1."
    )
    pipe = (
        f"FlowMapEulerDiscreteScheduler(shift={s!r})"
        if s is not None
        else "...  # a scheduler of Euler steps whose set_timesteps gives these sigmas"
    )
    trained = f"\nIt was trained on videos of {size.removesuffix(', ')}.\n" if size else ""
    return f"""A LoRA of plain Wan that is a student of {n} steps, and of no other number.

{of}
The sampler must be: euler, {n} steps, {asked}, cfg 1, strength 1.
The sigmas are then {sigmas}; with others it is no student at all.

ComfyUI: put {file} into models/loras. LoraLoaderModelOnly (strength 1), then
{comfy}

diffusers:

    from diffusers import FlowMapEulerDiscreteScheduler, WanPipeline

    pipe = WanPipeline.from_pretrained("the base")
    pipe.scheduler = {pipe}
    pipe.load_lora_weights("this directory", weight_name="{file}")
    video = pipe("a prompt", {size}num_inference_steps={n}, guidance_scale=1.0).frames[0]

A number of steps that divides 1000 has the same sigmas in both; with others ComfyUI rounds them to a table of 1000, and
its sigmas are the ones that the file is exact at.
{trained}"""
