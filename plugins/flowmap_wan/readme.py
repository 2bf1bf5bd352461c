"""README.txt of the forms: the lines that load a file, and what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowmap.export.forms import Saved

    from .fixed_step import Schedule

BASE = "base_under_wans_names.safetensors"
ALONE = """
diffusers 0.42 does not take this file: it drops or refuses the changes of norms, modulation and patch embedding, its
.diff. ComfyUI takes all of them.
"""
FOR_FASTVIDEO = """
This file is for FastVideo, and neither ComfyUI nor diffusers reads all of it: FastVideo puts no LoRA on embedders, and
takes the change of the time embedding whole where the file is given when the pipeline is made (lora_path).
"""
WITH_BASE = f"""
{BASE} is the base under the names that ComfyUI loads: for models/diffusion_models.
"""


def lora(student: Saved, base: dict[str, Any]) -> str:
    kind, index = type(student.spec).__name__, json.loads((student.folder / "model_index.json").read_text())
    path, package = base["path"] or "PATH OF THE BASE", type(student.spec).__module__.partition(".")[0]
    return f"""A LoRA for a lifted Wan transformer (two times), not for plain Wan, which has no delta_embedder.

Its base is {path}, lifted with gate {base["gate_value"]:g} and delta {base["deltatime_type"]!r}; made once, from its
hub id or the directory where you have it:

    import torch
    from pathlib import Path
    from {package} import {kind}

    base = {kind}({str(path)!r}, lora=None, gamma={base["gate_value"]!r}, delta={base["deltatime_type"]!r},
        shift={student.sampler["shift"]!r})
    nets = base.build(frozenset({{"student"}}), device=torch.device("cpu"), dtype=torch.float32)
    base.save(nets["student"], Path("base"))

Then:

    from diffusers import {index["_class_name"]}

    pipe = {index["_class_name"]}.from_pretrained("base")
    pipe.load_lora_weights("this directory")
    video = pipe("a prompt", {size_of(student)}num_inference_steps=4, guidance_scale=1.0).frames[0]
"""


def fixed_step(file: str, planned: Schedule, base: str | None, size: str) -> str:
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


def extracted(told: Mapping[str, Any]) -> str:
    """For the README, of adapters that were extracted."""
    if not told:
        return ""
    found = told["extracted"]
    off = max(found.get("outputs", {}).values(), default=None)
    off_by = "was not compared" if off is None else f"is off the student by {off:.2g} at most, relative"
    left = f"The change of {', '.join(found['left_out'])} is left out: this kind of file cannot hold it.\n"
    return f"""
The adapters were extracted from student - base: rank {found["rank"]} leaves out {found["error"]:.2g} of the change of
the matrices (Frobenius norm, relative). What the base with them computes {off_by}.
{left if found["left_out"] else ""}"""


def size_of(student: Saved) -> str:
    """The size of the videos that it was trained on, as a pipeline is told it; empty where `distill` did not say."""
    if "latent_shape" not in student.facts:
        return ""
    file = student.folder / "vae" / "config.json"
    vae = json.loads(file.read_text()) if file.is_file() else {}
    frames, _, *sides = student.facts["latent_shape"]
    height, width = (n * int(vae.get("scale_factor_spatial", 8)) for n in sides)
    frames = (frames - 1) * int(vae.get("scale_factor_temporal", 4)) + 1
    return f"height={height}, width={width}, num_frames={frames}, "
