"""An export in use: inputs checked against the manifest before a back end sees them, then the call it stands in for."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional as F

from .._types import Cache, Cond, Latent, Time
from ..model import ConditionError, FlowMap
from .errors import DtypeError, ExportError, ProfileError, failing
from .graph import Call
from .manifest import Built
from .spec import Outside, Range


@frozen(eq=False)
class Checked:
    """`call`, for tensors that `built` takes alone: some back ends compute nonsense on others, without a word."""

    built: Built
    call: Call
    device: torch.device

    def __call__(self, *args: Tensor) -> Tensor:
        check(self.built, args, self.device)
        with failing(f"{self.built.name} cannot be called"):
            return self.call(*(packed(a) for a in args))


def packed(a: Tensor) -> Tensor:
    """Contiguous, the strides of dimensions of size 1 too, which `Tensor.contiguous` leaves as they are."""
    return a.contiguous().flatten().view(a.shape)


def check(built: Built, args: tuple[Tensor, ...], device: torch.device) -> None:
    """An `ExportError` of a kind that says what is wrong, naming the input, what it is and what is allowed."""
    if len(args) != len(built.inputs):
        names = ", ".join(i.name for i in built.inputs)
        raise ExportError(f"{built.name} was given {len(args)} inputs: takes {names}")
    sizes: dict[str, tuple[int, str]] = {}
    for i, a in zip(built.inputs, args, strict=True):
        if a.dtype != i.dtype:
            raise DtypeError(f"{i.name} is {_short(a.dtype)}: must be {_short(i.dtype)}")
        if a.device.type != device.type:
            raise DtypeError(f"{i.name} is on {a.device.type}: this export runs on {device.type}")
        if a.ndim != len(i.dims):
            raise ProfileError(f"{i.name} is {tuple(a.shape)}: must have {len(i.dims)} dimensions, {_dims(i.dims)}")
        for k, (d, n) in enumerate(zip(i.dims, a.shape, strict=True)):
            if isinstance(d, int):
                if n != d:
                    raise ProfileError(f"dimension {k} of {i.name} is {n}: must be {d}")
                continue
            r, m = built.ranges[d], built.multiples.get(d, 1)
            if n not in r or n % m:
                outside = Outside(d, n, r, m)
                raise ProfileError(f"{d} of {i.name} is {n}: this export was made for {outside.allowed()}", outside)
            if sizes.setdefault(d, (n, i.name))[0] != n:
                raise ProfileError(f"{d} of {i.name} is {n}, that of {sizes[d][1]} is {sizes[d][0]}: must agree")


def _short(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _dims(dims: tuple[int | str, ...]) -> str:
    return " × ".join(map(str, dims))


class ExportedFlowMap(FlowMap):
    """u(z, t, r | c) of one built graph, all frames at once: what the student was, for `flowmap.sample`."""

    def __init__(self, call: Checked) -> None:
        super().__init__()
        self.call = call

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        known = {i.source for i in self.call.built.inputs}
        if unknown := cond.keys() - known:
            raise ConditionError(f"the export was given {sorted(unknown)} in its condition, which it does not read")
        given: dict[str | None, Tensor] = {"z": z, "t": t, "r": r}
        given.update(cond.items())
        args = []
        for i in self.call.built.inputs:
            if i.source not in given:
                raise ConditionError(f"the export reads {i.source!r} in its condition, and it was not given")
            a = given[i.source].to(i.dtype)
            if i.source in ("t", "r"):
                a = (a[:, None].expand(-1, z.shape[1]) if len(i.dims) > a.ndim else a) * i.scale
            if i.fill:
                a = fitted(a, self.call.built.range(i, 1))
            args.append(a)
        return self.call(*args).to(z.dtype)


def fitted(a: Tensor, allowed: Range) -> Tensor:
    """[B, n, ...] with zeros up to the least n, and without the ones beyond the most; what is not zero stays.

    Of zeros that are too many, one stays too: it stands for all padding.
    """
    if (short := allowed.least - a.shape[1]) > 0:
        return F.pad(a, (*(0, 0) * (a.ndim - 2), 0, short))
    if a.shape[1] <= allowed.most:
        return a
    used = a.flatten(2).any(2).any(0).nonzero()
    return a[:, : max(allowed.most, int(used[-1]) + 2 if len(used) else 0)]


class Transformer(nn.Module):
    """A built graph with the call of diffusers' AnyFlow transformer: `pipe.transformer = flowmap.export.load(DIR)`."""

    def __init__(self, call: Checked, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.call, self.config = call, SimpleNamespace(**config)

    @property
    def dtype(self) -> torch.dtype:
        """Of latents and text; what is inside may be narrower."""
        return self.call.built.inputs[0].dtype or torch.float32

    @property
    def device(self) -> torch.device:
        return self.call.device

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        r_timestep: Tensor,
        encoder_hidden_states: Tensor,
        attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The mean velocity, [B, F, C, H, W] like `hidden_states`; times [B, F] from 0 to 1000."""
        if attention_kwargs:
            raise ExportError(f"attention_kwargs = {dict(attention_kwargs)}: an export takes none")
        times = timestep.float(), r_timestep.float()  # schedulers of diffusers have them in float64
        u = self.call(hidden_states, *times, encoder_hidden_states)
        return SimpleNamespace(sample=u) if return_dict else (u,)
