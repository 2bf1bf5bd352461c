"""u(z, t, r) over any transformer that a row declares: adapters on one frozen base, or a whole network a role."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from attrs import frozen
from flowmap_lora.masters import thawed
from flowmap_lora.roles import Lora, adapter_parameters, give, sets
from flowmap_lora.sets import Sets
from flowmap_lora.start import Copies
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowmap import FlowMap
from flowmap._types import Cache, Cond, Latent, Role, Time
from flowmap.clock import Clock
from flowmap.model import ConditionError
from flowmap.path import expand
from flowmap.recomputing import Checkpointing, contexts

from . import vp
from .row import Call, Positions, Row, output

LEAST = 1e-6
"""t below which the first frame is taken to be there."""


class Running:
    """What the parts of a network that several roles may share are told of the call that runs: its times, its role's
    adapters."""

    def __init__(self) -> None:
        self.clock, self.sets = Clock(), Sets()


class DiffusersFlowMap(FlowMap):
    """u of `net`, whose embedders read `running.clock`.

    two_times: read r. lora: `net` is a frozen base that other roles use too, each with its own set of adapters; a
    frozen teacher uses none. schedule: of a variance-preserving teacher. computes: the precision
    of the forward pass. shapes: of one sample, z and conditions, as far as is known.
    """

    more: ClassVar[frozenset[str]] = frozenset()
    """What may stand in a condition beside the row's own entries."""

    def __init__(
        self,
        net: Any,
        row: Row,
        role: Role,
        running: Running,
        *,
        positions: Positions,
        computes: torch.dtype,
        two_times: bool,
        lora: Lora | None = None,
        schedule: vp.Schedule | None = None,
    ) -> None:
        super().__init__()
        self.net, self.row, self.role, self.running, self.lora = net, row, role, running, lora
        self.positions, self.computes, self.two_times, self.schedule = positions, computes, two_times, schedule
        self.adapter: str | None = None
        self.copies: Copies = {}  # of the plain network's layers
        running.sets = sets(net)
        self.shapes: Mapping[str, tuple[int, ...]] = row.example

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self._check(z, t, cond)
        if self.row.alone and len(z) > 1 and not torch.compiler.is_exporting():
            ones = [slice(i, i + 1) for i in range(len(z))]
            return torch.cat([self.forward(z[i], t[i], r[i], {k: v[i] for k, v in cond.items()}) for i in ones])
        if (held := self.row.held) is not None:
            return self._behind(cond[held].to(z), z, t, r, cond)
        return self._whole(z, t, r, cond, cache)

    def _behind(self, first: Latent, z: Latent, t: Time, r: Time, cond: Cond) -> Latent:
        """Of a video whose first latent frame is known: the network is given it at time 0, and what z has there is not
        heard. u of it is that of a data set of one point,

            u = (z - first) / t,    so that  Φ_{0←t}(z) = first  and  u = ε - first  at  z = (1 - t) first + t ε:

        samplers end there whatever they begin with, objectives and guidance have nothing to correct.
        """
        made = torch.arange(z.shape[1], device=z.device) > 0  # and no slice: a graph would not be of two frames
        here, behind = (torch.where(made, s if s.ndim == 2 else s[:, None], 0.0) for s in (t, r))
        u = self._whole(torch.where(expand(made[None], z), z, first), here, behind, cond)
        return torch.where(expand(made[None], z), u, (z - first) / expand(t.clamp_min(LEAST), z))

    def _whole(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        x = z if self.schedule is None else expand(vp.scale(t), z) * z
        now, then = self.units(t), self.units(r) if self.two_times else None
        given = {name: self._cast(value) for name, value in cond.items()}
        with self.running.clock.at(now, then) as told, self.running.sets.using(self.adapter):
            own, time = self.row.layout.to(self._cast(x)), told / self.row.multiplies
            call = Call(self.net, own, time, given, tuple(z.shape), self.positions, cache)
            y = output(self.net(**self.row.called(call), return_dict=False))
        y = self.row.layout.back(y, tuple(z.shape)).to(z.dtype)
        return self.row.convention.velocity(y) if self.schedule is None else self.schedule.velocity(z, y, t)

    def units(self, t: Time) -> Time:
        """As the embedders of the network have it."""
        return self.row.convention.time(t) if self.schedule is None else self.schedule.step_of(t)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [block for name in self.row.blocks for block in self.net.get_submodule(name)]

    def thaw(self) -> None:
        if self.lora is None:
            thawed(self.net)
        elif self.adapter is None:
            self.adapter = self.role
            times = "|".join(rf"{re.escape(path)}\.(now|then)\..*" for path in self.row.embedders)
            given = self.row.large, times if self.two_times else None, self.row.pipeline, self.copies
            self.lora = give(self.net, self.role, self.lora, *given)

    def trained(self) -> Mapping[str, nn.Parameter]:
        if self.lora is None:
            return {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        return {} if self.adapter is None else adapter_parameters(self.net, self.adapter)

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self.computes) if value.is_floating_point() else value

    def _check(self, z: Latent, t: Time, cond: Cond) -> None:
        name, needed = type(self.net).__name__, {*self.row.example} - {"z"}
        if cond.keys() - self.more != needed:
            raise ConditionError(f"{name} was given {sorted(cond)} as its condition: it reads {sorted(needed)}")
        if z.ndim != 5 or any(n % self.row.side for n in z.shape[-2:]):
            raise ValueError(f"{name}: latents {list(z.shape)}: must be [B, F, C, H, W], H and W ÷ {self.row.side}")
        if z.shape[1] % (frames := self.net.config.get("patch_size_t") or 1):
            raise ValueError(
                f"{name}: latents {list(z.shape)}: must have F ÷ {frames}, as its tokens are of {frames} frames"
            )
        if t.ndim != 1 and not self.row.frames:
            raise ValueError(f"{name}: times {list(t.shape)}: must be [B], it has no time for each frame")


@frozen
class Recomputing:
    """For diffusers' own checkpointing: a block is walked again with adapters and times of the call that it was in.

    An object, so that a copy of the network has one that is told of the copy's calls.
    """

    running: Running
    checkpointing: Checkpointing

    def __call__(self, block: nn.Module, *args: Any) -> Any:
        sets = self.running.sets
        name = sets.name

        def walk(*args: Any) -> Any:
            with sets.using(name):
                return block(*args)

        told = contexts(self.checkpointing, self.running.clock.contexts)
        return checkpoint(walk, *args, use_reentrant=False, context_fn=told)
