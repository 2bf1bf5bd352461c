"""The pipeline of diffusers itself, at toy size, with the network's output replaced by a velocity that is known."""

from __future__ import annotations

from inspect import signature
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve
from torch import Tensor

from flowmap._types import Cond, Latent, Rng
from flowmap.export.errors import ExportError
from flowmap.path import expand
from flowmap.reference import Heard, Played

from . import vp
from .build import plain, positions_of, schedule_of, scheduler_of
from .codec import DiffusersCodec
from .row import output

if TYPE_CHECKING:
    from .settings import Settings

STEPS = 4
R = 0.3
"""r / t, at which a network with two times of its own is looked at."""


def single(time: Tensor, frames: int | None = None) -> Tensor:
    """[B], where a pipeline tells every frame or token its time; without a condition they are one.

    frames: of a latent whose first is held, at time 0.
    """
    times = time.reshape(len(time), -1)
    if frames is not None:
        held, times = times.tensor_split([times.shape[1] // frames], 1)
        if bool(held.any()):
            raise AssertionError(f"the pipeline tells the first frame the time {held.tolist()}: must be 0")
    if not torch.equal(times, times[:, :1].expand_as(times)):
        raise AssertionError(f"the pipeline tells frames different times, {times.tolist()}: it was given a condition")
    return times[:, 0]


def grid(spec: Settings, steps: int) -> list[float]:
    """t_0 > ... > t_N = 0 of the pipeline's own schedule: what it hands over at toy size."""
    tiny = evolve(spec, path=None, lora=None, base=None, config={})
    z, cond = tiny.example(1)
    try:
        heard = played(tiny, torch.zeros_like(z), z, cond, steps, scheduler_of(spec)).calls
    except (ArithmeticError, ValueError, IndexError) as error:
        raise ExportError(f"steps = {steps}: {spec.row.pipeline} makes no such grid: {error}") from error
    times = [float(call.t[0]) for call in heard] + [0.0]
    if len(times) != steps + 1 or any(a <= b for a, b in pairwise(times)):
        raise ExportError(f"steps = {steps}: {spec.row.pipeline} takes other steps, {times}")
    return times


def played(spec: Settings, x: Latent, noise: Latent, cond: Cond, count: int = STEPS, scheduler: Any = None) -> Played:
    """By default with the schedule of `spec`."""
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    row, positions, scheduler = spec.row, positions_of(spec), scheduler or scheduler_of(spec)
    schedule = schedule_of(spec, scheduler)
    net = plain(spec, device=torch.device("cpu"), dtype=torch.float32)
    _, cls = row.classes()
    needed = [name for name, p in signature(cls).parameters.items() if p.default is p.empty]
    with torch.random.fork_rng(devices=[]):
        parts = {**dict.fromkeys(needed), **row.parts()}
    pipeline = cls(**{**parts, "transformer": net, "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    codec = DiffusersCodec(pipeline, row, positions, spec.guidance)
    shown, images = picture(codec, x)
    if row.held is not None:
        noise, point = (torch.cat([images[row.held], value[:, 1:]], 1) for value in (noise, x))
    else:
        point = x
    calls: list[Heard] = []
    of_class = signature(type(net).forward)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        handed = of_class.bind(net, *args, **kwargs).arguments
        own, time = (handed[name] for name in row.names)
        time = single(time, None if row.held is None else x.shape[1])
        then = dict.fromkeys(row.second, time)  # pipelines leave it out
        made = output(type(net).forward(net, *args, **{**kwargs, **then, "return_dict": False}))
        more: tuple[Tensor, ...] = ()
        if schedule is None:
            t = row.convention.t(time.float() * row.multiplies)
            z, v = row.layout.back(own, x.shape), row.convention.velocity(row.layout.back(made, x.shape))
            if then:
                earlier = {**kwargs, **dict.fromkeys(then, R * time), "return_dict": False}
                u = row.layout.back(output(type(net).forward(net, *args, **earlier)), x.shape)
                more = row.convention.t(R * time.float() * row.multiplies), row.convention.velocity(u)
            told = row.convention.velocity((z - point) / expand(t, z))
            if row.held is not None:  # pipelines leave out what the network says of the first frame
                v = torch.cat([z[:, :1] - point[:, :1], v[:, 1:]], 1)
        else:
            t = schedule.times[time.long()].float()
            z = row.layout.back(own, x.shape) / vp.scale(expand(t, x))
            v = schedule.velocity(z, row.layout.back(made, x.shape), t)
            told = schedule.said(z, (z - x) / expand(t, x), t)
        calls.append(Heard(z.clone(), t, v, *more))  # some pipelines step in place
        asked = handed.get("return_dict", True)
        return Transformer2DModelOutput(row.layout.to(told)) if asked else (row.layout.to(told),)

    net.forward = replaced
    frames, _, height, width = x.shape[1:]
    size = {"height": height * positions.spatial, "width": width * positions.spatial}
    size |= dict.fromkeys(("num_frames", "frames"), (frames - 1) * positions.temporal + 1)
    known = signature(cls.__call__).parameters
    given = {name: cond[key] for key, name in row.given.items()}
    end = pipeline(
        **{name: value for name, value in size.items() if name in known},
        **{**given, **shown, **row.call(cond, positions), "latents": row.latents.to(noise)},
        num_inference_steps=count,
        output_type="latent",
        return_dict=False,
    )[0]
    return Played(row.latents.back(end, x.shape) - point + x, calls, images)


def picture(codec: DiffusersCodec, x: Latent) -> tuple[dict[str, Any], Cond]:
    """({"image": one for the pipeline}, what the codec makes of it), of a video with latents like x; else nothing."""
    if not codec.row.images:
        return {}, {}
    from PIL import Image

    p, (frames, _, height, width) = codec.positions, x.shape[1:]
    noise = Rng.seeded(5).uniform(3 * height * width * p.spatial**2, x)
    drawn = (255 * noise).byte().reshape(3, height * p.spatial, width * p.spatial)
    images = codec.encode_images(drawn[None] / 255, (frames - 1) * p.temporal + 1)
    return {"image": Image.fromarray(drawn.permute(1, 2, 0).numpy())}, images
