"""A context: ranks that hold the same samples and share their tokens, so that a long video's are spread over them.

What differentiates is the sum over ranks of each rank's loss, an equal part of one and the same. One exchange does
everything, and it is its own transpose; so autograd's gradients, added up over all ranks, are those of one rank, for
parameters in front of the tokens' split, between it and the putting together, and behind that.

Attention goes by heads meanwhile, each rank all tokens of some heads: DeepSpeed-Ulysses, arXiv:2309.14509.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, distributed


@frozen(eq=False)
class Context:
    """size: how many ranks it has; rank: which of them this one is. group: None is all processes."""

    size: int
    rank: int
    group: Any = field(default=None, repr=False)

    def share(self, tokens: int) -> Share:
        """This rank's part of as many tokens."""
        return Share(self, tokens)

    def exchange(self, x: Tensor) -> Tensor:
        """[size, ...] -> [size, ...]: from rank i what stood at this rank's place in its x, at place i."""
        found: Tensor = _Exchange.apply(x, self.group)
        return found


@frozen(eq=False)
class Share:
    """Which of a sequence of `tokens` tokens this rank has: equally long runs, the last ones filled up with zeros.

    Nobody sees the filling: keys, values and what is put together end with the last token.
    """

    context: Context
    tokens: int

    @property
    def length(self) -> int:
        """Of every rank's run, filling included."""
        return -(-self.tokens // self.context.size)

    @property
    def first(self) -> int:
        return self.length * self.context.rank

    def own(self, x: Tensor, dim: int = 1) -> Tensor:
        """Of all tokens, along `dim`, this rank's; a copy, so that the whole need not be kept."""
        there = max(0, min(self.tokens - self.first, self.length))
        part = x.narrow(dim, min(self.first, self.tokens), there)
        if there == self.length:
            return part.clone()
        shape = [*x.shape[:dim], self.length - there, *x.shape[dim + 1 :]]
        return torch.cat([part, x.new_zeros(shape)], dim)

    def whole(self, x: Tensor) -> Tensor:
        """[B, length, ...] -> [B, tokens, ...]: all ranks' parts in a row, on each of them."""
        parts = self.context.exchange(x.expand(self.context.size, *x.shape))
        return self._in_a_row(parts)

    def heads(self, *own: Tensor) -> tuple[Tensor, ...]:
        """Each [B, length, heads, d] -> [B, tokens, heads / size, d]: own tokens of all heads, all tokens of own heads.

        Several, such as queries, keys and values, take one exchange; copies, so that each is kept for its own time.
        """
        parts = torch.stack(own, -2).unflatten(2, (self.context.size, -1)).movedim(2, 0)
        return tuple(x.contiguous() for x in self._in_a_row(self.context.exchange(parts)).unbind(-2))

    def back(self, x: Tensor) -> Tensor:
        """The inverse of `heads`."""
        filling = x.new_zeros(len(x), self.length * self.context.size - self.tokens, *x.shape[2:])
        parts = torch.cat([x, filling], 1).unflatten(1, (self.context.size, -1)).movedim(1, 0)
        return self.context.exchange(parts).movedim(0, 2).flatten(2, 3)

    def groups(self, sizes: Sequence[int]) -> tuple[slice, list[int]]:
        """Of groups of tokens in a row, that together are all: which are on this rank, and how long each is here."""
        return overlap(sizes, self.first, self.first + self.length)

    def _in_a_row(self, parts: Tensor) -> Tensor:
        """[size, B, length, ...] -> [B, tokens, ...]"""
        return parts.movedim(0, 1).flatten(1, 2)[:, : self.tokens]


def overlap(sizes: Sequence[int], first: int, last: int) -> tuple[slice, list[int]]:
    """Which of groups in a row, of these sizes, are in [first, last), and how long each is there.

    What is past the last group counts as that group's.
    """
    ends = [*accumulate(sizes)]
    ends[-1] = max(ends[-1], last)
    starts = [0, *ends[:-1]]
    here = [min(end, last) - max(start, first) for start, end in zip(starts, ends, strict=True)]
    found = [i for i, n in enumerate(here) if n > 0]
    return slice(found[0], found[-1] + 1), [here[i] for i in found]


class _Exchange(torch.autograd.Function):
    """All to all. Linear: a tangent goes the same way; and its own transpose: a gradient does, too."""

    @staticmethod
    def forward(x: Tensor, group: Any) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        distributed.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Exchange.apply(gradients[0], ctx.group), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        found: Tensor = _Exchange.apply(tangents[0], ctx.group)
        return found
