"""u_θ over a diffusers transformer of the Wan family: what all have in common, and the bidirectional network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from flowmap_lora.files import beside
from flowmap_lora.masters import thawed
from flowmap_lora.roles import Lora, adapter_parameters, give, sets
from flowmap_lora.start import Copies
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowmap import FlowMap
from flowmap._types import Cache, Cond, Latent, Role, Time
from flowmap.context_parallel import Context, Share, overlap
from flowmap.kernels import exact
from flowmap.model import ConditionError
from flowmap.recomputing import Checkpointing, contexts
from flowmap.time_embedding import mix

from .block import Block, KeyValue, Mask, Rope, Text, rotation
from .targets import BLOCKS, PIPELINE, TIMES

TIME_SCALE = 1000.0  # the only place that knows it
P = ParamSpec("P")
R = TypeVar("R")


def adapted(part: Callable[Concatenate[WanFlowMap, P], R]) -> Callable[Concatenate[WanFlowMap, P], R]:
    """A part of the network, whoever calls it, with the adapters of its own role in whatever layers it has."""

    @wraps(part)
    def called(self: WanFlowMap, /, *given: P.args, **named: P.kwargs) -> R:
        with sets(self.net).using(self.adapter):
            return part(self, *given, **named)

    return called


class WanFlowMap(FlowMap):
    """u_θ of `net`, a transformer with Wan's modules, which has one time or, lifted, two.

    two_times: read r; a teacher or critic on a base that was lifted for the student reads t alone. lora: `net` is a
    frozen base that other roles use too, each with its own set of adapters; a frozen teacher uses none.
    whole: the modules that are trained in full beside the adapters.
    cond["text"]: [B, tokens, text_dim], whose last position is padding unless all `text_length` are there.

    A network writes `forward` from `tokens`, `embed`, `text`, `through` and `latent`.
    """

    def __init__(
        self,
        net: Any,
        role: Role,
        *,
        two_times: bool,
        lora: Lora | None = None,
        whole: tuple[str, ...] = (),
        text_length: int = 512,
        checkpointing: Checkpointing = False,
    ) -> None:
        super().__init__()
        self.net, self.role, self.two_times, self.lora, self.whole = net, role, two_times, lora, whole
        self.text_length, self.checkpointing = text_length, checkpointing
        self.adapter: str | None = None
        self.copies: Copies = {}  # of the base's layers
        self.context: Context | None = None  # the ranks that share this one's tokens
        self.computes: torch.dtype | None = None  # in what, if that is not what the weights are in
        self.gamma, self.delta = net.config.get("gate_value", 0.0), net.config.get("deltatime_type", "r")
        for i, block in enumerate(net.blocks):
            if not isinstance(block, Block):
                net.blocks[i] = Block(block)

    def thaw(self) -> None:
        if self.lora is None:
            self.computes = None if self.dtype == torch.float32 else self.dtype
            thawed(self.net)
        elif self.adapter is None:
            self.adapter = self.role
            times = TIMES if self.role == "student" else None
            self.lora = give(self.net, self.role, self.lora, BLOCKS, times, PIPELINE, self.copies)
            for name in self.whole:
                self.net.get_submodule(name).float().requires_grad_(True)
            for name, value in self.whole_of_init().items():
                if not (p := self.net.get_parameter(name)).is_meta:
                    p.data.copy_(value)

    def whole_of_init(self) -> Mapping[str, Tensor]:
        """What lies beside the file that a student's adapters begin as: what was trained in full with them."""
        if self.role != "student" or self.lora is None or self.lora.init is None:
            return {}
        found = beside(self.lora.init)
        if found and {name.rpartition(".")[0] for name in found} != {*self.whole}:
            raise ValueError(
                f"Lora.init = {self.lora.init!r}: has {', '.join(sorted(found))} beside its adapters: is of a student "
                f"of another kind, this one trains {', '.join(self.whole) or 'nothing'} in full"
            )
        return found

    @property
    def precision(self) -> torch.dtype:
        return self.dtype

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.net.blocks)

    def trained(self) -> Mapping[str, nn.Parameter]:
        if self.lora is None:
            return {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        if self.adapter is None:
            return {}
        whole = {f"{m}.{name}": p for m in self.whole for name, p in self.net.get_submodule(m).named_parameters()}
        return {**adapter_parameters(self.net, self.adapter), **whole}

    # ------------------------------------------------------------------ the parts of `forward`
    @property
    def patch(self) -> int:
        """The side of a token, in latents."""
        return int(self.net.config.patch_size[-1])

    @property
    def dtype(self) -> torch.dtype:
        """Of the tokens."""
        return self.computes or self.net.patch_embedding.weight.dtype

    def tokens(self, z: Latent) -> Tensor:
        """[B, F, C, H, W] -> [B, F · rows · columns, d]."""
        if z.shape[-2] % self.patch or z.shape[-1] % self.patch:
            raise ValueError(f"latents of {z.shape[-2]} × {z.shape[-1]}: both must be multiples of {self.patch}")
        return patchify(self.net.patch_embedding, z, self.dtype)

    @adapted
    def embed(self, t: Time, r: Time) -> Tensor:
        """[B, G, d] float32: (1 - γ) e(t) + γ e'(r), or e(t); G is 1, or the frames that have a time each."""
        t, r = (s if s.ndim == 2 else s[:, None] for s in (t, r))
        embedder = self.net.condition_embedder
        now = _time(embedder.timesteps_proj, embedder.time_embedder, t)
        if not self.two_times:
            return now
        then = _time(embedder.timesteps_proj, embedder.delta_embedder, r if self.delta == "r" else t - r)
        return mix(now, then, self.gamma)

    @adapted
    def text(self, cond: Cond) -> Text:
        """Embeddings, and the log of how many positions of padding the last one stands for."""
        kept, bias = cond["text"].shape[1], None
        if kept > self.text_length:
            raise ConditionError(
                f"cond['text'] has {kept} positions: must have at most text_length, {self.text_length}"
            )
        embedded = self.net.condition_embedder.text_embedder(cond["text"].to(self.dtype))
        if kept != self.text_length:
            bias = F.pad(embedded.new_full((1, 1), math.log(self.text_length - kept + 1)), (kept - 1, 0))
        return embedded, bias

    @adapted
    def through(
        self,
        h: Tensor,
        e: Tensor,
        groups: Sequence[int],
        text: Text,
        rope: Rope,
        mask: Mask = None,
        past: Sequence[Sequence[KeyValue]] = (),
        remember: Callable[[Tensor, Tensor], KeyValue] | None = None,
        turned: bool = True,
    ) -> tuple[Tensor, list[KeyValue]]:
        """All blocks, with h [B, S, d], e [B, G, d] and turned as in `Block`; past: by piece of the history, by layer.

        Returns the last block's tokens, in a context this rank's, and what `remember` makes of the keys and values of
        every layer: of a whole video at 14B they are more than twice what training holds for its backward pass.
        """
        if (share := self._share(groups)) is not None:
            here, groups = share.groups(groups)
            h, e, rope = share.own(h), e[:, here], (share.own(rope[0], 0), share.own(rope[1], 0))
        modulation = self.net.condition_embedder.time_proj(F.silu(e).to(h.dtype)).unflatten(-1, (6, -1))
        found: list[KeyValue] = []
        for i, block in enumerate(self.net.blocks):
            own = tuple(piece[i] for piece in past)
            h, k, v = self._block(block, h.contiguous(), modulation, groups, text, rope, mask, own, share, turned)
            if remember is not None:
                found.append(remember(k, v))
        return h, found

    @adapted
    def latent(self, h: Tensor, e: Tensor, groups: Sequence[int], like: Latent, skip: int = 0) -> Latent:
        """The head: the tokens that `through` gave, but for the first `skip`, to a latent like `like`, in its dtype."""
        net, (_, frames, _, height, width) = self.net, like.shape
        if (share := self._share(groups)) is not None:
            here, groups = share.groups(groups)
        else:
            here, groups = overlap(groups, skip, h.shape[1])
            h = h[:, skip:]
        e = e[:, here]
        shift, scale = (net.scale_shift_table[:, None] + e[:, :, None]).unbind(2)
        parts = [
            part * (1 + scale[:, i : i + 1]) + shift[:, i : i + 1]
            for i, part in enumerate(net.norm_out(h.float()).split(list(groups), dim=1))
        ]
        h = net.proj_out(torch.cat(parts, 1).to(h.dtype)).to(like.dtype)
        h = h if share is None else share.whole(h)[:, skip:]
        h = h.unflatten(1, (frames, height // self.patch, width // self.patch)).unflatten(
            -1, (self.patch, self.patch, -1)
        )
        return h.permute(0, 1, 6, 2, 4, 3, 5).reshape(like.shape)

    def _share(self, groups: Sequence[int]) -> Share | None:
        """Which of the tokens are on this rank; None is all of them."""
        return None if self.context is None else self.context.share(sum(groups))

    def _block(self, block: nn.Module, h: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        made: tuple[Tensor, Tensor, Tensor]
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(h, *rest)

        def run(h: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
            with sets(self.net).using(self.adapter):  # recomputation comes when `through` is over
                return block(h, *rest)

        made = checkpoint(run, h, *rest, use_reentrant=False, context_fn=contexts(self.checkpointing))
        return made


class Bidirectional(WanFlowMap):
    """All frames at once, every token seeing every other: Wan2.1, and AnyFlow's bidirectional student."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        if unknown := cond.keys() - {"text"}:
            raise ConditionError(
                f"the bidirectional {self.role} was given {sorted(unknown)} in its condition: it reads 'text' alone. "
                "velocity = 'teacher' asks it about frames after a clean history: a student in chunks takes 'data', or "
                "a causal Recipe.forward_teacher"
            )
        frames, rows, columns = z.shape[1], z.shape[3] // self.patch, z.shape[4] // self.patch
        e = self.embed(t, r)
        groups = [frames * rows * columns // e.shape[1]] * e.shape[1]
        axes = [torch.arange(n, device=z.device) for n in (frames, rows, columns)]
        rope = rotation(axes, self.net.config.attention_head_dim)
        h, _ = self.through(self.tokens(z), e, groups, self.text(cond), rope)
        return self.latent(h, e, groups, z)


def patchify(embedding: nn.Module, z: Latent, dtype: torch.dtype) -> Tensor:
    """[B, F, C, H, W] -> [B, tokens, d] of `dtype`, frame by frame, row by row."""
    own = next(embedding.parameters()).dtype
    return embedding(z.to(own).transpose(1, 2)).flatten(2).transpose(1, 2).to(dtype)


def _time(sinusoids: nn.Module, embedder: Any, t: Time) -> Tensor:
    """The sinusoids in float32 or wider, the embedder in its own dtype, the result float32."""
    features = sinusoids(t.flatten() * TIME_SCALE).unflatten(0, t.shape)
    dtype = next(embedder.parameters()).dtype
    with exact():
        made: Tensor = embedder(features.to(dtype))
    return made.float()
