"""LoRA files that a spec names, looked at before anything else of it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from flowmap_lora.roles import INIT
from flowmap_lora.start import pairs

from .build import FUSE, copies, empty, hear, style
from .network import Running

if TYPE_CHECKING:
    from .settings import Settings


def check(spec: Settings) -> None:
    """A ValueError where one is not for the network of `spec`, whose size is known here."""
    net = empty(spec, torch.float32)
    of_time = [layer for layer in style(spec, net) if layer.startswith(spec.row.embedders)]
    if of_time and spec.is_student:
        raise ValueError(
            f"{FUSE} = {spec.fuse!r}: changes {of_time[0]}, and the network at {spec.path} has two embedders of the "
            "time already: only a LoRA of its blocks can be added to it"
        )
    if spec.lora is not None and spec.lora.init is not None:
        hear(net, spec.row, Running(), spec.gamma, torch.float32)
        pairs(spec.lora.init, net, spec.row.pipeline, INIT, {} if spec.is_student else copies(net))
