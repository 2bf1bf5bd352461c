"""Whether what was built computes what the student computes: parity.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from attrs import asdict, frozen
from torch import Tensor

from .._types import Cond, Rng
from ..model import Codec, FlowMap
from ..rollout import sample
from .errors import ParityError
from .family import Family
from .spec import Precision, ShapeProfile

TIMES = ((1.0, 0.0), (1.0, 0.75), (0.6, 0.2), (0.4, 0.4), (0.1, 0.0))
LIMITS: Mapping[Precision, float] = {"float32": 1e-5, "fp16": 1e-2, "bf16": 5e-2, "fp8": 0.1}
"""Of the relative error of one call; a rollout, whose errors add up, may have `ROLLOUT` times that.

fp8: with three bits behind the point each factor of a product is off by some 2.5 %. Measured beside float16: 2 % of a
call with random weights, 3 to 8 % of a call and 10 to 17 % of a video of a small student with trained ones.
"""
ROLLOUT: Mapping[Precision, float] = {"float32": 10.0, "fp16": 10.0, "bf16": 10.0, "fp8": 3.0}


@frozen
class Measured:
    """error: ‖export - student‖ / ‖student‖. largest: difference, beside a root mean square of `scale`."""

    what: str
    sizes: Mapping[str, int]
    error: float
    limit: float
    largest: float
    scale: float

    @property
    def good(self) -> bool:
        return self.error <= self.limit  # not for a NaN


@frozen
class Parity:
    precision: Precision
    measured: tuple[Measured, ...]

    @property
    def worst(self) -> Measured:
        return max(self.measured, key=lambda m: float("inf") if m.error != m.error else m.error / m.limit)

    def require(self) -> None:
        worst = self.worst
        if not worst.good:
            sizes = ", ".join(f"{name} {n}" for name, n in worst.sizes.items())
            raise ParityError(
                f"the export is not the student: {worst.what} at {sizes} differs by {worst.error:.1e} relative, "
                f"at most {worst.limit:.0e} is allowed in {self.precision}; nothing was written"
            )

    def json(self) -> dict[str, Any]:
        return {"worst": asdict(self.worst), **asdict(self)}


def parity(
    u: FlowMap,
    made: FlowMap,
    family: Family,
    profile: ShapeProfile,
    precision: Precision,
    steps: Sequence[int] = (1, 4),
    shift: float = 1.0,
    codec: Codec | None = None,
) -> Parity:
    """`made` beside `u`, which computes in `precision` too; what that itself costs is another question (`narrowing`).

    Single calls at five (t, r), and a rollout, at the usual, least and most sizes; frames at the usual ones.
    Of a network in chunks also calls of every chunk after the first, with its history.
    """
    return Parity(precision, tuple(_measure(u, made, family, profile, precision, steps, shift, codec)))


@torch.no_grad()
def _measure(
    u: FlowMap,
    made: FlowMap,
    family: Family,
    profile: ShapeProfile,
    precision: Precision,
    steps: Sequence[int],
    shift: float,
    codec: Codec | None,
) -> Iterator[Measured]:
    limit = LIMITS[precision]
    walked = limit * ROLLOUT[precision]
    for k, sizes in enumerate(corners(profile)):
        z, cond = family.example(u, sizes, Rng.seeded(11, k))
        first = u.chunks(z.shape[1])[0] if z.ndim > 1 else 1
        for t, r in TIMES:
            at, to = (torch.full((len(z),), float(s), device=z.device) for s in (t, r))
            own = z[:, :first]
            yield compare(made(own, at, to, cond), u(own, at, to, cond), f"u(t={t:g}, r={r:g})", sizes, limit)
        yield from _with_history(u, made, z, cond, sizes, limit)
        if k:
            ours, theirs = (sample(net, z, cond, steps[0], shift=shift) for net in (made, u))
            yield compare(ours, theirs, walk(steps[0], u, z), sizes, walked)
    z, cond = family.example(u, profile.usual(), Rng.seeded(12))
    for n in steps:
        ours, theirs = (sample(net, z, cond, n, shift=shift) for net in (made, u))
        yield compare(ours, theirs, walk(n, u, z), profile.usual(), walked)
        if codec is not None:
            frames = codec.decode(ours), codec.decode(theirs)
            yield compare(*frames, f"frames of {walk(n, u, z)}", profile.usual(), walked)


def _with_history(
    u: FlowMap, made: FlowMap, z: Tensor, cond: Cond, sizes: Mapping[str, int], limit: float
) -> Iterator[Measured]:
    """Calls of the later chunks, each with a history of the same clean ones: a rollout shows it only in passing."""
    if z.ndim < 2 or len(u.chunks(z.shape[1])) < 2:
        return
    ours = theirs = None
    for k, (done, own) in enumerate(pairwise(z.split(u.chunks(z.shape[1]), 1)), 1):
        ours, theirs = made.extend(ours, done, cond), u.extend(theirs, done, cond)
        t, r = TIMES[k % len(TIMES)]
        at, to = (torch.full((len(z),), float(s), device=z.device) for s in (t, r))
        found = made(own, at, to, cond, ours), u(own, at, to, cond, theirs)
        yield compare(*found, f"u(t={t:g}, r={r:g}) of chunk {k + 1}", sizes, limit)


def walk(steps: int, u: FlowMap, z: Tensor) -> str:
    """What a rollout is called."""
    chunks = len(u.chunks(z.shape[1])) if z.ndim > 1 else 1
    return ("1 step" if steps == 1 else f"{steps} steps") + (f" in {chunks} chunks" if chunks > 1 else "")


def corners(profile: ShapeProfile) -> list[dict[str, int]]:
    """The usual sizes, then the least and the most where they are others."""
    found = [profile.usual()]
    for end in ({n: r.least for n, r in profile.dims.items()}, {n: r.most for n, r in profile.dims.items()}):
        if end not in found:
            found.append(end)
    return found


def compare(ours: Tensor, theirs: Tensor, what: str, sizes: Mapping[str, int], limit: float) -> Measured:
    a, b = ours.double(), theirs.double()
    return Measured(
        what, dict(sizes), relative(a, b), limit, float((a - b).abs().max()), float(b.square().mean().sqrt())
    )


def relative(ours: Tensor, theirs: Tensor) -> float:
    """‖ours - theirs‖ / ‖theirs‖."""
    a, b = ours.double(), theirs.double()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))
