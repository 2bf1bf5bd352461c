"""Heads that judge samples by the features of a network: what adversarial methods ask of their critic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, final

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.nn import functional as F

from flowmap import Batch, FlowMap, Rng, validators
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.model import Wrapped

from .chunked import levels

HEAD_DIM = 64


def _increasing(instance: object, attribute: Any, depths: tuple[float, ...]) -> None:
    if not depths or depths[0] <= 0.0 or depths[-1] > 1.0 or list(depths) != sorted({*depths}):
        raise ValueError(f"Heads.{attribute.name} = {depths}: must increase, each above 0 and at most 1")


@frozen
class Heads:
    """One logit from the tokens that some blocks of a network give out; called, it makes a `Judge` of the network.

    depths: which blocks, as shares of all; 1 is the last. A network of few blocks gives fewer features than there are
    depths. pool: "query", a learnt token that attends to the block's tokens, or "mean", their mean. seed: of the
    heads' weights.

    How wide the features are, the network tells itself: it is asked about one sample, and its blocks' outputs are
    looked at. Nothing in the parameters of a block says it for every architecture.
    """

    depths: tuple[float, ...] = field(default=(0.5, 0.75, 1.0), converter=levels, validator=_increasing)
    pool: Literal["query", "mean"] = field(default="query", validator=validators.in_(("query", "mean")))
    seed: int = 0

    def __call__(self, u: FlowMap, sample: Batch) -> Judge:
        at = self.blocks(len(u.blocks))
        with torch.no_grad():
            tokens = features(u, at, sample.x, sample.x.new_full((len(sample),), 0.5), sample.cond)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = Head([x.shape[-1] for x in tokens], self.pool, Rng.seeded(self.seed))
        return Judge(u, at, head.to(sample.x.device))

    def blocks(self, count: int) -> tuple[int, ...]:
        """The numbers of the blocks, of `count`, from 0."""
        if not count:
            raise ValueError("Heads: the network names no blocks, whose outputs heads judge by: implement `blocks`")
        return tuple(sorted({max(1, round(share * count)) - 1 for share in self.depths}))


@final
class Judge(Wrapped):
    """`u` with a head on its features: a critic that also says whether a sample looks like data.

    As a flow map it is `u`. What it trains is what `u` trains, and the head, float32.
    """

    def __init__(self, u: FlowMap, at: tuple[int, ...], head: nn.Module) -> None:
        super().__init__(u)
        self.at, self.head = at, head

    def logits(self, z: Latent, t: Time, cond: Cond) -> Tensor:
        """[B] float32, D(z, t | c): positive where z looks like data."""
        found: Tensor = self.head(features(self.u, self.at, z, t, cond))
        return found

    def by_chunk(self, x: Latent, t: Time, cond: Cond) -> Tensor:
        """[B, K] float32, of each chunk of a clean video after those before it, remembered with a graph; K is 1 of a
        network that makes all frames at once."""
        parts, cache, found = x.split(self.u.chunks(x.shape[1]), dim=1), None, []
        for k, part in enumerate(parts):
            found.append(self.head(features(self.u, self.at, part, t, cond, cache)))
            cache = self.u.extend(cache, part, cond) if k + 1 < len(parts) else None
        return torch.stack(found, 1)

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        u: Latent = self.u(z, t, r, cond, cache)
        return u

    def trained(self) -> Mapping[str, nn.Parameter]:
        return {**self.u.trained(), **{f"judge.{name}": p for name, p in self.head.named_parameters()}}


def features(u: FlowMap, at: Sequence[int], z: Latent, t: Time, cond: Cond, cache: Cache = None) -> list[Tensor]:
    """What the blocks `at` give out at z_t, after a history: tokens, each [B, S, d], with the graph that the call has.

    The hooks are there for this call alone: roles that share a base do not see them, nor does a block's recomputation
    in the backward pass. A block that runs several times counts the last time.
    """
    with _watching([u.blocks[i] for i in at]) as outputs:
        u(z, t, t, cond, cache)
    return [_tokens(outputs.get(k), i, z) for k, i in enumerate(at)]


@contextmanager
def _watching(modules: Sequence[nn.Module]) -> Iterator[dict[int, Any]]:
    """Outputs of the modules, by place, filled in as they run."""
    found: dict[int, Any] = {}

    def watch(k: int) -> Any:
        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            found[k] = output

        return keep

    with ExitStack() as hooks:
        for k, module in enumerate(modules):
            hooks.enter_context(module.register_forward_hook(watch(k)))
        yield found


def _tokens(output: Any, block: int, z: Latent) -> Tensor:
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, Tensor) or first.ndim < 2 or len(first) != len(z):
        given = "nothing: it did not run" if output is None else f"a {type(first).__name__}"
        given = f"{tuple(first.shape)}" if isinstance(first, Tensor) else given
        raise TypeError(
            f"block {block} gave out {given}: heads need its tokens, [B, S, d] with B = {len(z)}, or a tuple of which "
            "they are the first"
        )
    return first.reshape(len(first), -1, first.shape[-1])


class Head(nn.Module):
    """Tokens of several depths to one logit: each pooled to a vector; all together normalised and projected."""

    def __init__(self, widths: Sequence[int], pool: Literal["query", "mean"], rng: Rng) -> None:
        super().__init__()
        self.pools = nn.ModuleList([QueryPool(width, rng) if pool == "query" else MeanPool() for width in widths])
        self.norm, self.out = nn.LayerNorm(sum(widths)), nn.Linear(sum(widths), 1)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        pooled = [pool(x.float()) for pool, x in zip(self.pools, tokens, strict=True)]
        logits: Tensor = self.out(self.norm(torch.cat(pooled, -1)))[:, 0]
        return logits


class MeanPool(nn.Module):
    """[B, S, d] -> [B, d]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class QueryPool(nn.Module):
    """[B, S, d] -> [B, d]: a learnt token attends to the normalised ones."""

    def __init__(self, width: int, rng: Rng) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM if width % HEAD_DIM == 0 else 1
        self.query = nn.Parameter(rng.noise_like(torch.zeros(width)))
        self.norm, self.to_k, self.to_v = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x, query = self.norm(x), self.query.expand(len(x), 1, -1)
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in (query, self.to_k(x), self.to_v(x)))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)
