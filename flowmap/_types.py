"""The vocabulary: what the letters mean, and their shapes.

B batch, F latent frames, C channels, H W latent height and width.
Time runs from data to noise: t = 0 is data, t = 1 is noise, and r <= t.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Literal, Self, TypeAlias

import torch
from attrs import define, field, frozen
from torch import Tensor

from .seeding import digest, generator

Latent: TypeAlias = Tensor  # [B, F, C, H, W]; any [B, ...] will do for a network that accepts it
Time: TypeAlias = Tensor  # [B], or [B, F] where frames differ; float32, in [0, 1]
Cond: TypeAlias = Mapping[str, Tensor]  # what the backbone conditions on; every entry [B, ...]
Cache: TypeAlias = Any  # owned by the backbone, an immutable snapshot; None before the first chunk
Role: TypeAlias = Literal["student", "teacher", "critic", "forward_teacher"]
BELOW_ONE = 1 - 2**-24
CPU = torch.device("cpu")
NOTHING = torch.empty(0)  # on the CPU: `like` for what is decided there, so that no device is waited for


@frozen
class Batch:
    """One local batch.

    x: clean latents [B, F, C, H, W]. cond: what they are conditioned on, every entry [B, ...].
    null: the entries of `cond` that classifier-free guidance replaces, each [1, ...] or [B, ...].
    """

    x: Latent
    cond: Cond
    null: Cond

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Batch:
        """On `device`, x in float32."""
        cond, null = (
            {name: to_device(value, device) for name, value in part.items()} for part in (self.cond, self.null)
        )
        return Batch(to_device(self.x, device).float(), cond, null)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x on `device`. An upload is not waited for; the way back is, since who reads x reads it at once."""
    return x.to(device, non_blocking=x.device.type == "cpu")


def nullify(cond: Cond, null: Cond, where: Tensor | None = None) -> Cond:
    """`cond` with the entries of `null` in place of its own, for the samples in the mask `where` [B] (default: all).

    What `null` does not name stays: a network in chunks keeps its history in the unconditional branch.
    """
    out = dict(cond)
    for name, value in null.items():
        old = cond[name]
        new = value.expand(len(old), *value.shape[1:])
        keep = None if where is None else ~where.reshape(-1, *(1,) * (old.ndim - 1))
        out[name] = new if keep is None else torch.where(keep, old, new)
    return out


def require_null(null: Cond | None, w: float) -> None:
    """Guidance compares with something: with nothing to compare with it would only amplify noise."""
    if w != 1.0 and not null:
        raise ValueError(f"guidance w = {w} needs a null condition, and the batch has none: give one, or take w = 1")


def concat(*conds: Cond) -> Cond:
    """Conditions of several calls, to make them one call: every entry concatenated over the batch."""
    return {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]}


def select(cond: Cond, index: Tensor) -> Cond:
    """The samples `index` of a condition."""
    return {name: value[index] for name, value in cond.items()}


@frozen
class Mean:
    """A mean over samples that can be merged over micro-batches and ranks: a sum and a count, both [], or [K]."""

    total: Tensor
    count: Tensor

    @classmethod
    def of(cls, values: Tensor, mask: Tensor | None = None) -> Self:
        """Of values [B] where mask [B]; of each of K groups of them, where mask [B, K]."""
        mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
        values = values.detach().reshape(len(values), *(1,) * (mask.ndim - 1))
        return cls(values.where(mask, 0.0).sum(0).float(), mask.sum(0).float())

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> Tensor:
        """[] or [K]; not a number where nothing was counted."""
        return self.total / self.count


@define
class Rng:
    """Randomness by key: the same on one rank or many, whatever else draws.

    Every draw is a function of (`key`, how many draws this object made before, global sample index) alone, so
    the same global batch sees the same noise on 1, 2 or 3 ranks and under any accumulation, and choices that
    every rank must agree on (`randint`, `permutation`) need no broadcast. A number a sample is drawn on the CPU, the
    same whatever the device; noise, which is large, on the device.

    key: (seed, stage, step, ...). positions: where the local samples stand in the global batch of `total`;
    None means that the local batch is the whole. noise: [B, ...] that the samples come from, see `of`.
    """

    key: tuple[int, ...]
    positions: tuple[int, ...] | None = None
    total: int | None = None
    noise: Latent | None = field(default=None, eq=False)
    _draws: int = field(default=0, init=False)

    @classmethod
    def seeded(cls, *key: int) -> Self:
        return cls(tuple(key))

    @classmethod
    def of(cls, noise: Latent, *key: int) -> Self:
        """Each sample draws by its own `noise` in place of its position: the same in whatever batch it is made.

        What samples share, `permutation` and `randint`, is by the key alone. The noise is read when it is needed.
        """
        return cls(tuple(key), noise=None if noise.is_meta else noise)

    def fork(self, *key: int) -> Rng:
        """An independent stream for the same samples."""
        return Rng((*self.key, *key), self.positions, self.total, self.noise)

    def noise_like(self, x: Tensor) -> Tensor:
        """Standard normal, shaped like x, at least float32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self._each(partial(torch.randn, dtype=dtype, device=x.device), x.shape, x.device)

    def uniform(self, n: int, like: Tensor) -> Tensor:
        """[n] in [0, 1), float32."""
        return to_device(self._each(torch.rand, (n,), CPU), like.device)

    def normal(self, n: int, like: Tensor) -> Tensor:
        """[n], float32."""
        return to_device(self._each(torch.randn, (n,), CPU), like.device)

    def stratified(self, n: int, like: Tensor) -> Tensor:
        """[n] in [0, 1), float32, one in each of `total` equal intervals over the global batch.

        So a share s of the global batch falls below s: exactly where s · total is whole, on average where not.
        """
        total = self._total(n)
        drawn = (self._local(self.permutation(total)) + self.uniform(n, NOTHING)) / total
        return to_device(drawn.clamp_max(BELOW_ONE), like.device)  # float32 rounds the last interval's end up

    def permutation(self, n: int) -> Tensor:
        """[n] a permutation of 0 .. n - 1, the same on every rank."""
        return torch.randperm(n, generator=self._generators(CPU)[0])

    def randint(self, n: int) -> int:
        """One integer in [0, n), the same on every rank."""
        return int(torch.randint(n, (), generator=self._generators(CPU)[0]))

    def _total(self, n: int) -> int:
        here = self.noise if self.positions is None else self.positions
        if here is not None and len(here) != n:
            raise ValueError(f"a draw for {n} samples, but this Rng stands for {len(here)}")
        return n if self.total is None else self.total

    def _local(self, drawn: Tensor) -> Tensor:
        return drawn if self.positions is None else drawn[list(self.positions)]

    def _each(self, draw: Callable[..., Tensor], shape: Sequence[int], device: torch.device) -> Tensor:
        """`draw` for the samples here, shape[0] of them."""
        n, *rest = shape
        total = self._total(n)
        if self.noise is None:
            return self._local(draw((total, *rest), generator=self._generators(device)[0]))
        return torch.stack([draw(rest, generator=g) for g in self._generators(device, self._own)])

    @cached_property
    def _own(self) -> list[bytes]:
        return [digest(z) for z in ([] if self.noise is None else self.noise)]

    def _generators(self, device: torch.device, own: Sequence[bytes] = (b"",)) -> list[torch.Generator | None]:
        key = struct.pack(f"<{len(self.key) + 1}q", *self.key, self._draws)
        self._draws += 1
        # meta: a step without numbers, whose cost or whose reads are of interest
        return [None if device.type == "meta" else generator(key + each, device) for each in own]


@define
class Shared:
    """What the objectives of one iteration share across micro-batches, updates and ranks, and what outlives it.

    iteration: of the stage, from 0; for what is warmed up. ranks: how many work on the batch; where there are several
    all must make the same calls of the same networks, so nothing is left out for want of a sample: see `idle`.
    measuring: whether to measure what is looked at once a stage.
    A mean belongs to the place that asks for it, such as role, update, term and reweight: see `at`.
    """

    iteration: int = 0
    ranks: int = 1
    measuring: bool = False
    _now: dict[str, Mean] = field(factory=dict, init=False)  # of this rank
    _seen: dict[str, Mean] = field(factory=dict, init=False)  # of all ranks and earlier iterations
    _last: dict[str, Mean] = field(factory=dict, init=False)
    _samples: dict[int, Tensor] = field(factory=dict, init=False)
    _passes: dict[tuple[int, ...] | None, tuple[Tensor, ...]] = field(factory=dict, init=False)
    _idle: bool = field(default=False, init=False)
    _place: tuple[str | int, ...] = field(default=(), init=False)

    def mean(self, name: str, values: Tensor, mask: Tensor, decay: float = 0.0) -> Tensor:
        """The mean of `values` [B] where `mask`, over what the global batch has shown so far: all ranks, all
        micro-batches up to this one. [], or for a mask [B, K] one of each group, [K].

        Of all that ask by `name` from where this is asked, and of no others: two terms share none. A mean that is to be
        of the whole batch asks for its samples to come first: see `Ordered`. decay: how much what was counted in an
        iteration still counts in the next one; with 0 the mean is this iteration's. Where nothing is counted it is the
        last that there was, and not a number where there was none. What is not finite counts as nothing, and of a step
        that is skipped nothing is remembered: see `forget`.
        """
        name, mean = "/".join(map(str, (*self._place, name))), Mean.of(values, mask)
        if self._idle:
            mean = Mean(torch.zeros_like(mean.total), torch.zeros_like(mean.count))
        self._now[name] = mean = self._now[name] + mean if name in self._now else mean
        if self.ranks > 1:
            mean = _summed(mean)
        self._seen[name] = mean = self._known(name, mean, decay)
        return mean.value

    def last(self, name: str, values: Tensor, mask: Tensor, decay: float = 0.0) -> Tensor:
        """As `mean`, but what this iteration shows counts from the next one on: the same in every micro-batch."""
        now = self.mean(name, values, mask, decay)
        return self._before("/".join(map(str, (*self._place, name))), Mean(now, now)).value

    @contextmanager
    def at(self, *place: str | int) -> Iterator[None]:
        """While entered, what is asked for belongs to `place`, within the place before."""
        before, self._place = self._place, (*self._place, *place)
        try:
            yield
        finally:
            self._place = before

    @contextmanager
    def idle(self) -> Iterator[None]:
        """While entered, `mean` takes part in what ranks do together, and adds nothing: for calls that make up a share
        of the batch of which this rank happens to have no sample."""
        before, self._idle = self._idle, True
        try:
            yield
        finally:
            self._idle = before

    def keep(self, rng: Rng, x: Latent) -> None:
        """Keep the student's samples for this micro-batch, so that another update need not roll out again."""
        self._samples |= zip(rng.positions or range(len(x)), x.detach(), strict=True)

    def kept(self, rng: Rng) -> Latent | None:
        found = [self._samples.get(position) for position in rng.positions or range(len(self._samples))]
        there = [x for x in found if x is not None]
        return torch.stack(there) if there and len(there) == len(found) else None

    def keep_pass(self, rng: Rng, *made: Tensor) -> None:
        """Keep what a network was asked for this micro-batch and its answer, with the graph, for another update."""
        self._passes[rng.positions] = made

    def kept_pass(self, rng: Rng) -> tuple[Tensor, ...] | None:
        """It, once."""
        return self._passes.pop(rng.positions, None)

    def forget(self, skipped: Tensor, *place: str | int) -> None:
        """Remember nothing that was asked for in `place` in this iteration, where `skipped` [] is not 0."""
        within = "/".join(map(str, place)) + "/"
        for name, mean in self._seen.items():
            if name.startswith(within):
                before = self._before(name, mean)
                self._seen[name] = Mean(
                    torch.where(skipped == 0, mean.total, before.total),
                    torch.where(skipped == 0, mean.count, before.count),
                )

    def next(self) -> None:
        """The iteration is over."""
        self._last |= self._seen
        for done in (self._now, self._seen, self._samples, self._passes):
            done.clear()

    def state(self) -> dict[str, Any]:
        """JSON: of each mean the sum and the count, numbers, or lists of them."""
        return {name: [mean.total.tolist(), mean.count.tolist()] for name, mean in self._last.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._last = {name: Mean(*map(torch.tensor, mean)) for name, mean in state.items()}

    def _known(self, name: str, now: Mean, decay: float) -> Mean:
        """`now` and what is left of the last; the last, where `now` has nothing or is not finite."""
        last, some = self._before(name, now), now.value.isfinite()
        keep = decay * last.value.isfinite()
        return Mean(
            torch.where(some, now.total + (keep * last.total).nan_to_num(), last.total),
            torch.where(some, now.count + keep * last.count, last.count),
        )

    def _before(self, name: str, like: Mean) -> Mean:
        """The last; without a count where there is none."""
        last = self._last.get(name)
        if last is None:
            return Mean(torch.zeros_like(like.total), torch.zeros_like(like.count))
        return Mean(to_device(last.total, like.total.device), to_device(last.count, like.count.device))


def _summed(mean: Mean) -> Mean:
    """Merged over all ranks, in one exchange."""
    both = torch.stack([mean.total, mean.count])
    torch.distributed.all_reduce(both)
    return Mean(both[0], both[1])
