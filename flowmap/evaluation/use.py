"""How a student is loaded and sampled, for its model card: code that runs, of each kind of student."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from ..kind import half, kind
from ..mistaken import INDEX
from ..model import FlowMapSpec

EXACT_LATENTS = """\
step = pipe.scheduler.step
pipe.scheduler.step = lambda u, *rest, **more: step(u.float(), *rest, **more)


def narrow(transformer, args, given):
    return args, given | {"hidden_states": given["hidden_states"].to(transformer.dtype)}


pipe.transformer.register_forward_pre_hook(narrow, with_kwargs=True)
"""
"""For a pipeline of diffusers in bfloat16 or float16: latents stay float32; the transformer is given them rounded."""
FACTS = Mapping[str, Any]


def task(backbone: FlowMapSpec, facts: FACTS) -> str | None:
    """The hub's name for what it does; None of a network that takes no prompts."""
    if not prompted(backbone):
        return None
    if backbone.images:
        return "image-to-video"
    return "text-to-image" if facts.get("latent_shape", [0])[0] == 1 else "text-to-video"


def prompted(backbone: FlowMapSpec) -> bool:
    return type(backbone).codec is not FlowMapSpec.codec


def sections(
    backbone: FlowMapSpec,
    student: Path,
    facts: FACTS,
    w: float | None,
    few: bool,
    manifest: FACTS | None,
    video: tuple[int, int, int] | None = None,
) -> list[str]:
    """w: built-in guidance, None where it is not known. few: it jumps to data. manifest: of the evaluation. video:
    frames, height and width that it was trained at, where they are known."""
    if kind(student) == "half":
        return [f"## Sampling\n\nThis is {half(student)}."]
    how = (
        "A step jumps to data, and fresh noise is added before the next: `flowmap sample` does that. The pipeline's "
        "scheduler follows the flow, which this student did not learn: it is right for one step alone."
        if few and kind(student) == "pipeline"
        else "A step jumps to data, and fresh noise is added before the next."
        if few
        else "Any number of steps will do."
    )
    built_in = "" if w == 1.0 else f"Guidance {'' if w is None else f'{w:g} '}is built in: "
    one = (
        f"{built_in}{'o' if built_in else 'O'}ne call of the network a step, no {'more ' if built_in else ''}guidance."
    )
    text = f"## Sampling\n\n{one} {how} The grid is shifted by {backbone.shift:g}.{_at(video)}"
    if kind(student) == "weights":
        return [f"{text}\n\n```python\n{by_flowmap(backbone, facts, few)}```"]
    return _pipeline(backbone, student, facts, few, manifest, text, video)


def _at(video: tuple[int, int, int] | None) -> str:
    if video is None:
        return ""
    frames, height, width = video
    many = "" if frames == 1 else f"{frames} frames of "
    return f" It was trained at {many}height {height} and width {width}."


def by_flowmap(backbone: FlowMapSpec, facts: FACTS, few: bool) -> str:
    """Code for a student that diffusers does not know."""
    shape = ", ".join(map(str, facts.get("latent_shape", [])))
    network, before, after = facts.get("network") or {}, "", ""
    again, note = "", ""
    if "module" in network:
        again = f', backbone="{network["maker"]}"' if network["maker"] else ", backbone=net"
        note = f"  # net: the {network['module']} that it was made of" if not network["maker"] else ""
    if prompted(backbone):
        before = (
            'spec = flowmap.backbone("path/of/this/directory")\n'
            'codec = spec.codec(device=torch.device("cpu"), dtype=torch.float32)\n'
            'conditions = codec.encode_prompts(["a prompt"])\n'
        )
        after = "videos = codec.decode(x)  # [1, frames, 3, height, width], in [0, 1]\n"
    elif conditions := facts.get("conditions"):
        types = facts.get("types", {})
        zeros = (
            f'"{name}": torch.zeros({", ".join(map(str, (1, *size)))}, dtype=torch.{types.get(name, "float32")})'
            for name, size in conditions.items()
        )
        before = f"conditions = {{{', '.join(zeros)}}}  # yours, of these shapes\n"
    given = "conditions" if before else "{}"
    step = ", step=consistency_step" if few else ""
    extra = "from flowmap.rollout import consistency_step\n" if few else ""
    return f"""import flowmap
import torch
{extra}
u = flowmap.load("path/of/this/directory"{again}){note}
{before}noise = torch.randn(1, {shape})
x = flowmap.sample(u, noise, {given}, steps=4, shift={backbone.shift:g}{step})
{after}"""


def _pipeline(
    backbone: FlowMapSpec,
    student: Path,
    facts: FACTS,
    few: bool,
    manifest: FACTS | None,
    text: str,
    video: tuple[int, int, int] | None,
) -> list[str]:
    name = json.loads((student / INDEX).read_text())["_class_name"]
    size: dict[str, int] | None
    if video is None:
        latent = facts.get("latent_shape", [0])
        frames, size = latent[0], None
        text += f" It was trained on latents {latent}, [F, C, H, W]: tell the pipeline the size of such videos."
    else:
        frames, height, width = video
        size = {"num_frames": frames, "height": height, "width": width}
    own = not isinstance(name, str)  # code of its own beside the weights, which knows how it is called
    if own and size is not None and (word := _word_for_frames(student / "student.py")) != "num_frames":
        size = {word: size.pop("num_frames"), **size}
    name, trusted = ("DiffusionPipeline", ", trust_remote_code=True") if own else (name, "")
    if frames == 1 and size is not None:
        size = {side: size[side] for side in ("height", "width")}
    prompt = "a prompt" if manifest is None else manifest["prompts"]["first"]
    told = f"{prompt!r}, num_inference_steps={1 if few else 4}" + ("" if own else ", guidance_scale=1.0")
    sized, seen = "" if size is None else f"size = {json.dumps(size)}\n", ""
    if backbone.images:
        told, seen = f'image=load_image("first.png"), prompt={told}', "\nfrom diffusers.utils import load_image"
    return [
        f"""{text}

```python
from diffusers import {name}{seen}

pipe = {name}.from_pretrained("path/of/this/directory"{trusted})
{sized}video = pipe({told}{", **size" if sized else ""}).{"images" if frames == 1 else "frames"}[0]
```""",
        *([] if few or own else [_narrow()]),
    ]


def _word_for_frames(code: Path) -> str:
    """What the pipeline of diffusers that this code is of calls the number of frames."""
    import diffusers

    found = re.search(r"\b(?!Diffusion)\w+Pipeline\b", code.read_text()) if code.is_file() else None
    pipeline = None if found is None else getattr(diffusers, found[0], None)
    return "frames" if pipeline is not None and "frames" in signature(pipeline.__call__).parameters else "num_frames"


def _narrow() -> str:
    return f"""In bfloat16 the pipeline's scheduler rounds the latents after every step, and many steps add that up. A
small student was 1.3 % off its float32 self at 4 steps and 3.2 % at 128; with latents in float32 it was 1.0 % off at
128. To keep them in float32, run this after `from_pretrained`:

```python
{EXACT_LATENTS}```"""
