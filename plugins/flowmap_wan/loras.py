"""LoRA files that a spec names, looked at before anything else of it is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from flowmap_diffusers.folder import local
from flowmap_lora.roles import INIT
from flowmap_lora.start import pairs

from .build import lift
from .outline import FUSE, empty, style
from .targets import PIPELINE, TIMES

if TYPE_CHECKING:
    from .settings import WanSettings


def check(spec: WanSettings) -> None:
    """A ValueError where one is not for the network of `spec`, as far as the size of this is known here."""
    init = None if spec.lora is None else spec.lora.init
    if (init is None and spec.fuse is None) or (spec.path is not None and local(spec.path) is None):
        return
    net = empty(spec, torch.float32)
    of_time = [layer for layer in style(spec) if re.fullmatch(TIMES, layer)]
    if of_time and "gate_value" in net.config:
        raise ValueError(
            f"{FUSE} = {spec.fuse!r}: changes {of_time[0]}, and the network at {spec.path} has two embedders of the "
            "time already: only a LoRA of its blocks can be added to it"
        )
    if init is not None:
        pairs(init, lift(spec, net), PIPELINE, INIT, {})
