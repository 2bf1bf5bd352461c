"""A toy video network with everything that a backbone can have: chunks, a cache, adapters on a shared base,
recomputation. One attention layer over frames; all tests of the trainer run on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowmap import FlowMap, FlowMapSpec, Rng, TensorData
from flowmap._types import Cache, Cond, Latent, Role, Time
from flowmap.time_embedding import mix
from flowmap.window import Window

FRAMES, CHANNELS, TEXT = 4, 2, 3
SIZE = CHANNELS * 4
CHUNK = 2
GAMMA = 0.25


class Linear(nn.Linear):
    """With sets of low-rank adapters, by role, of which at most one is active."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__(inp, out)
        self.sets, self.active = nn.ModuleDict(), ""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.sets[self.active](x.float()).to(y.dtype) if self.active in self.sets else y

    def add(self, role: Role) -> None:
        self.sets[role] = nn.Sequential(
            nn.Linear(self.in_features, 2, bias=False), nn.Linear(2, self.out_features, bias=False)
        )
        nn.init.zeros_(self.sets[role][1].weight)


class Net(nn.Module):
    """Velocities of frames: hidden states attend to those of all frames, or of the past."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp, self.text, self.out = Linear(SIZE, width), Linear(TEXT, width), Linear(width, SIZE)
        self.now = nn.Sequential(Linear(8, width), nn.SiLU(), Linear(width, width))
        self.then: nn.Module | None = None
        self.qkv = Linear(width, 3 * width)
        self.mlp = nn.Sequential(Linear(width, 2 * width), nn.SiLU(), Linear(2 * width, width))


class ToyFlowMap(FlowMap):
    """u of `net` as `role` sees it; `adapters` where others see it too."""

    def __init__(self, spec: Toy, net: Net, role: Role, *, adapters: bool) -> None:
        super().__init__()
        self.spec, self.net, self.role, self.adapters = spec, net, role, adapters
        self.two_times = role == "student"
        self.window: Window | None = None

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.activate()
        h = self.hidden(z, self.embed(t, r), cond)
        zero = torch.zeros_like(t)
        history = self.keys(cond["clean"], self.embed(zero, zero), cond) if "clean" in cond else cache
        u = self.run(h, history, self.mask(z.shape[1], history[0].shape[1]) if "clean" in cond else None)
        return u.reshape(z.shape).to(z.dtype)

    def run(self, h: Tensor, history: Any, mask: Tensor | None) -> Tensor:
        if self.spec.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.attend, h, history, mask, use_reentrant=False)
        return self.attend(h, history, mask)

    def attend(self, h: Tensor, history: Any, mask: Tensor | None) -> Tensor:
        self.activate()
        q, k, v = self.net.qkv(h).chunk(3, -1)
        if history is not None:
            k, v = torch.cat([history[0], k], 1), torch.cat([history[1], v], 1)
        h = h + F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.net.out(h + self.net.mlp(h))

    def activate(self) -> None:
        for layer in self.net.modules():
            if isinstance(layer, Linear):
                layer.active = self.role if self.adapters else ""

    def embed(self, t: Time, r: Time) -> Tensor:
        now = self.net.now(features(t, self.dtype))
        if not self.two_times:
            return now
        assert self.net.then is not None
        return mix(now, self.net.then(features(r, self.dtype)), GAMMA)

    def hidden(self, z: Latent, e: Tensor, cond: Cond) -> Tensor:
        told = self.net.text(cond["text"].to(self.dtype))
        return self.net.inp(z.flatten(2).to(self.dtype)) + (e + told)[:, None]

    def keys(self, x: Latent, e: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        _, k, v = self.net.qkv(self.hidden(x, e, cond)).chunk(3, -1)
        return k, v

    def mask(self, frames: int, clean: int) -> Tensor:
        """[frames, clean + frames]: a noisy frame, of the last ones, sees earlier chunks clean, and its own noisy."""
        chunk = torch.arange(clean) // CHUNK
        noisy = chunk[-frames:]
        return torch.cat([noisy[:, None] > chunk[None], noisy[:, None] == noisy[None]], 1)

    @property
    def dtype(self) -> torch.dtype:
        return self.net.inp.weight.dtype

    def chunks(self, frames: int) -> tuple[int, ...]:
        return (CHUNK,) * (frames // CHUNK) if self.spec.causal else (frames,)

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        if not self.spec.causal:
            return None
        return self.extend_noisy(cache, x, x.new_zeros(len(x)), cond)

    def extend_noisy(self, cache: Cache, z: Latent, t: Time, cond: Cond) -> Cache:
        self.activate()
        k, v = self.keys(z, self.embed(t, t), cond)
        both = (k, v) if cache is None else (torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1))
        return both if self.window is None else self.kept(*both, self.window)

    def kept(self, k: Tensor, v: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """It knows no places, so that chunks need not be counted."""
        start, end = CHUNK * window.sink, CHUNK * window.recent
        k, v = (torch.cat([x[:, :start], x[:, start:][:, -end:]], 1) for x in (k, v))
        return k, v

    def bound(self, window: Window) -> None:
        if not self.spec.causal:
            super().bound(window)
        self.window = window

    def packed(self, x: Latent, cond: Cond) -> Cond | None:
        return {**cond, "clean": x} if self.spec.causal else None

    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        return (x, {**cond, "clean": x}) if self.spec.causal else (x, cond)

    def trained(self) -> Mapping[str, nn.Parameter]:
        if not self.spec.shared:
            return super().trained()
        return {n.replace(f".{self.role}.", "."): p for n, p in self.net.named_parameters() if f".{self.role}." in n}

    def thaw(self) -> None:
        if self.spec.shared and not self.adapters:
            self.adapters = True
            adapt(self.net, self.role)
        elif not self.spec.shared:
            super().thaw()


def features(t: Time, dtype: torch.dtype) -> Tensor:
    """[B, 8], made in float32."""
    angles = t[:, None] * torch.tensor([0.5, 3.0, 20.0, 100.0])
    return torch.cat([angles.cos(), angles.sin()], -1).to(dtype)


def adapt(net: Net, role: Role) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for layer in [m for m in net.modules() if isinstance(m, Linear)]:
            layer.add(role)


@frozen
class Toy(FlowMapSpec):
    """shared: one frozen base, and adapters a role. network: the class, for planting defects."""

    width: int = 16
    causal: bool = False
    shared: bool = False
    checkpointing: bool = False
    seed: int = 0
    network: type[ToyFlowMap] = field(default=ToyFlowMap, repr=False)

    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        base = self.base("student").to(device, dtype).requires_grad_(False)
        nets = {role: base if self.shared else self.base(role).to(device, dtype) for role in sorted(roles)}
        built: dict[Role, FlowMap] = {}
        for role, net in nets.items():
            if self.shared and role != "teacher":
                adapt(net, role)
            elif not self.shared:
                net.requires_grad_(role != "teacher")
            built[role] = self.network(self, net, role, adapters=self.shared and role != "teacher")
        return built

    def base(self, role: Role) -> Net:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = Net(self.width)
        if role == "student":
            with torch.random.fork_rng(devices=[]):
                net.then = nn.Sequential(Linear(8, self.width), nn.SiLU(), Linear(self.width, self.width))
            net.then.load_state_dict(net.now.state_dict())
        return net

    def tiny(self) -> Self:
        return self

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        rng = Rng.seeded(0)
        z, text = torch.zeros(batch, FRAMES, CHANNELS, 2, 2), torch.zeros(batch, TEXT)
        return rng.noise_like(z), {"text": rng.noise_like(text)}


def data(samples: int = 16, spec: Toy | None = None) -> TensorData:
    x, cond = (spec or Toy()).example(samples)
    return TensorData(x, dict(cond), {"text": torch.zeros(1, TEXT)})
