"""What is to be known of a class of diffusers: a row. No model library is imported here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
from typing import Any, NamedTuple

import torch
from attrs import Factory, field, frozen
from torch import Tensor

from flowmap._types import Cond
from flowmap.path import Convention


def texts(c: Call) -> list[Tensor]:
    """Each of its own length, on which the positions may depend; a graph is of one length."""
    text, mask = c.cond["text"], c.cond["mask"]
    if not torch.compiler.is_exporting():
        return [one[own.bool()] for one, own in zip(text, mask, strict=True)]
    which = type(c.net).__name__
    torch._assert_async(mask.all(), f"{which}, exported: every token of the text must be its own, its mask all ones")
    return [*text]


def output(y: Any) -> Tensor:
    """Of a call with return_dict=False: one class gives the tensor itself."""
    made: Tensor = y if isinstance(y, Tensor) else y[0]
    return made


Inputs = Callable[["Call"], Mapping[str, Any]]


class Call(NamedTuple):
    """One call of a network. x: the latent as the network takes it; shape: as it is here, [B, F, C, H, W].

    t: in the network's units, [B] or, where the row allows that, [B, F]. cond: in the network's precision. positions:
    of the pixels behind the latents, seconds a latent frame and pixels a latent side. cache: of a causal network.
    """

    net: Any
    x: Any
    t: Tensor
    cond: Mapping[str, Tensor]
    shape: tuple[int, ...]
    positions: Positions
    cache: Any = None


@frozen
class Positions:
    """fps: frames of video a second. temporal, spatial: by how much the VAE shrinks, frames and sides."""

    fps: float
    temporal: int
    spatial: int


@frozen
class Layout:
    """[B, F, C, H, W], to what a network takes and back; `like` is the shape that it has here."""

    to: Callable[[Tensor], Any]
    back: Callable[[Any, tuple[int, ...]], Tensor]


@frozen(eq=False)
class Row:
    """A class.

    inputs: the keyword arguments that the network is called with; names: of the latent and the time among them. times:
    the modules that embed the time, each a `TimestepEmbedding` beside its sinusoids, or one that makes its own; second:
    of a network that has two times of its own, the module that embeds r by the argument that it is given r in. layout:
    of latents, in and out; latents: of those of the pipeline. convention: of time and velocity; multiplies: by what the
    network multiplies its time before it embeds it. predictions: of a variance-preserving teacher on a discrete
    schedule, what it may predict, of `vp.PREDICTIONS`; which, its directory's scheduler says. scheduler, schedule: the
    pipeline's class of it, and its arguments but for the shift, where no directory says so. blocks: the lists of
    repeated blocks. frames: a time a frame can be told. adapted: which linear layers of the blocks get adapters, a
    regular expression. example: shapes without the batch; masks are all ones, of integers. text: what `encode_prompt`
    of the pipeline gives out, by its place; empty: what it is told otherwise where it encodes the empty prompt, for a
    pipeline that encodes prompts and the absence of one in two ways; tokens: of it, to which it is padded and masked,
    where their number depends on the prompts; alone: the network has no mask for what is padded, so every sample goes
    through it on its own; given: under which names the pipeline takes it back; call: its other arguments, so that it
    guides by nothing but what is in the condition; parts: of the pipeline, without which it does not run, at toy size.
    ready: what a network needs once, on its device, before it is traced. only: what the class must be told, or it is a
    network that the row does not read. null: what guidance replaces. hub: the published pipeline. size,
    guidance: as it was published, frames, height and width, and w, or what is embedded of it. fps, vae: frames a
    second, and how many frames and pixels of a side one latent stands for, where no directory says so; side: of a
    token, in latents; shift: of the sampling grid, at the largest size where the pipeline's depends on it. images: of a
    network that begins with an image, the entries of the condition that are made of it, each by a function of (codec,
    images, frames) as in `images.py`; held: the one of them that is the first latent frame itself, which the network is
    given in place of z's, at time 0. index: what a directory's `model_index.json` must say; also: pipelines whose
    directories do as well; needs: what the class must be told something.

    module: where class and pipeline are, if not in diffusers; such a pipeline knows latents alone. causal: a network
    that makes chunk after chunk, which has `remember`, and `chunk_width` and `clean_t` in its config; others: those
    calls of an embedder within one of the network that are for the time of clean chunks.
    """

    transformer: str
    pipeline: str
    inputs: Inputs
    times: tuple[str, ...]
    layout: Layout
    tiny: Mapping[str, Any]
    example: Mapping[str, tuple[int, ...]]
    given: Mapping[str, str]
    hub: str | None = None
    module: str = "diffusers"
    names: tuple[str, str] = ("hidden_states", "timestep")
    latents: Layout = field(default=Factory(lambda row: row.layout, takes_self=True))
    convention: Convention = Convention(1000.0)
    multiplies: float = 1.0
    predictions: tuple[str, ...] = ()
    scheduler: str = "FlowMatchEulerDiscreteScheduler"
    schedule: Mapping[str, Any] = field(factory=dict)
    second: Mapping[str, str] = field(factory=dict)
    causal: bool = False
    others: tuple[int, ...] = ()
    blocks: tuple[str, ...] = ("transformer_blocks",)
    frames: bool = False
    adapted: str = r"((cross_)?attn\d?\..*(to_|add_)|ffn?(_context)?\.net\.|proj_(mlp|out)$)"
    text: Mapping[str, int] = field(factory=lambda: {"text": 0})
    empty: Mapping[str, Any] = field(factory=dict)
    tokens: int | None = None
    alone: bool = False
    masks: tuple[str, ...] = ()
    null: tuple[str, ...] = ("text",)
    call: Callable[[Cond, Positions], Mapping[str, Any]] = lambda cond, positions: {"guidance_scale": 1.0}
    ready: Callable[[Any, torch.device], object] = lambda net, device: None
    parts: Callable[[], Mapping[str, Any]] = dict
    only: Mapping[str, Any] = field(factory=dict)
    size: tuple[int, int, int] | None = None
    guidance: float | None = None
    fps: float = 24.0
    vae: tuple[int, int] = (4, 8)
    side: int = 2
    shift: float = 1.0
    licence: str | None = None
    images: Mapping[str, Callable[[Any, Tensor, int], Tensor]] = field(factory=dict)
    held: str | None = None
    index: Mapping[str, Any] = field(factory=dict)
    also: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def vp(self) -> bool:
        """Whether it is variance preserving, on a discrete schedule."""
        return bool(self.predictions)

    @property
    def large(self) -> str:
        """The layers that get adapters, of attention and feed-forward: nearly all weights, and no modulation."""
        return rf"({'|'.join(map(re.escape, self.blocks))})\.\d+\.{self.adapted}.*"

    @property
    def embedders(self) -> tuple[str, ...]:
        """Of t and of r."""
        return (*self.times, *self.second.values())

    def called(self, c: Call) -> Mapping[str, Any]:
        """The keyword arguments of a call at r = t; another r is told to its embedder, by the clock."""
        given = self.inputs(c)
        return {**given, **dict.fromkeys(self.second, given[self.names[1]])}

    @property
    def image(self) -> bool:
        """Whether it makes one frame."""
        return self.example["z"][0] == 1

    @property
    def latents_only(self) -> bool:
        """Whether there is a network and no pipeline of videos: its texts and latents are made elsewhere."""
        return self.module != "diffusers"

    def classes(self) -> tuple[Any, Any]:
        """Of the transformer and of the pipeline."""
        module = import_module(self.module)
        return getattr(module, self.transformer), getattr(module, self.pipeline)

    def default(self, name: str) -> Any:
        """What the transformer's class is told where a directory says nothing."""
        return signature(self.classes()[0].__init__).parameters[name].default


def unguided(cond: Cond, positions: Positions) -> Mapping[str, Any]:
    """For `Row.call`: a pipeline that is guided by one of its parts, a guider."""
    return {}


def embedded(cond: Cond, positions: Positions) -> Mapping[str, Any]:
    """For `Row.call`: guidance that was distilled into the network, which is told of it."""
    return {"guidance_scale": float(cond["guidance"][0])}
