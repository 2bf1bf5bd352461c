"""The numbers of networks that were built without: read tensor by tensor, of each as many rows as are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from flowmap_diffusers.drawn import drawn
from flowmap_diffusers.loading import stored
from flowmap_lora.quantised import filling
from flowmap_lora.roles import fill_adapter, of_init
from flowmap_lora.start import Pairs, added

from flowmap import FlowMap
from flowmap._types import Role
from flowmap.model import Put, Rows

from .bases import began
from .network import WanFlowMap
from .outline import PATCH, checked_class, dtype_of, empty, style, two_times
from .targets import PIPELINE

if TYPE_CHECKING:
    from .settings import WanSettings


def fill(spec: WanSettings, nets: Mapping[Role, FlowMap], put: Put, dtype: torch.dtype) -> None:
    """What `WanSettings.build` gives to networks that were built on the meta device.

    Random weights are drawn tensor by tensor, each whole: what is kept of it are the rows that `put` asks for.
    """
    source = Source.of(spec, dtype)
    members = {role: u for role, u in nets.items() if isinstance(u, WanFlowMap)}
    for net in {id(u.net): u.net for u in members.values()}.values():
        rows = filling(net, source.rows)
        for name, p in net.named_parameters():
            if ".lora_" not in name:
                put(p, rows(name))
    for u in members.values():
        began(spec, u, source.rows)
        if u.lora is not None and u.adapter is not None:
            fill_adapter(u.net, u.adapter, u.lora, put, of_init(u.net, u.role, u.lora, PIPELINE, u.copies))
        for name, value in u.whole_of_init().items():
            put(u.net.get_parameter(name), value.__getitem__)


@frozen
class Source:
    """The tensors of a lifted network, by name: those of its base, or made of them.

    stored: where the base's are; cls: its class, which says what stays float32 whatever `dtype` is; lifted: whether it
    was lifted before, and has a second embedder that is its own.
    """

    spec: WanSettings
    stored: Mapping[str, Any]
    cls: Any
    dtype: torch.dtype
    style: Pairs
    lifted: bool

    @classmethod
    def of(cls, spec: WanSettings, dtype: torch.dtype) -> Source:
        if spec.path is None or not spec.pretrained:
            net = empty(spec, dtype)
            return cls(spec, drawn(net, spec.seed), type(net), dtype, style(spec), False)
        base = checked_class(spec)
        lifted = two_times(base.load_config(spec.path, subfolder=spec.part))
        return cls(spec, stored(spec.path, spec.part), base, dtype, style(spec), lifted)

    def rows(self, name: str) -> Rows:
        if not self.lifted:
            name = name.replace(".delta_embedder.", ".time_embedder.")
        if name in self.stored:
            part, dtype = self.stored[name], dtype_of(name, self.cls, self.dtype)
            if (pair := self.style.get(name.removesuffix(".weight"))) is not None:
                return added(part, pair, dtype)
            return lambda rows: part[rows].to(dtype)
        base = {key: self.rows(key)(slice(None)) for key in PATCH}
        return self.spec.extra_state(base)[name].__getitem__
