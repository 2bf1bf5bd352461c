"""Whether what was built computes what the student computes, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from attrs import asdict, frozen
from torch import Tensor

from .._types import Rng
from ..model import Codec, FlowMap
from ..rollout import sample
from .errors import ParityError
from .graph import Family
from .spec import Precision, ShapeProfile

TIMES = ((1.0, 0.0), (1.0, 0.75), (0.6, 0.2), (0.4, 0.4), (0.1, 0.0))
LIMITS: Mapping[Precision, float] = {"float32": 1e-5, "fp16": 1e-2, "bf16": 5e-2}
"""Of the relative error of one call; a rollout, whose errors add up, may have ten times that."""


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
    """Single calls at five (t, r) at the usual, least and most sizes; rollouts and their frames at the usual ones.

    A network in chunks is walked at the other sizes too: only so its history is seen.
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
    for k, sizes in enumerate(corners(profile)):
        z, cond = family.example(u, sizes, Rng.seeded(11, k))
        first = u.chunks(z.shape[1])[0] if z.ndim > 1 else 1
        for t, r in TIMES:
            at, to = (torch.full((len(z),), float(s), device=z.device) for s in (t, r))
            own = z[:, :first]
            yield compare(made(own, at, to, cond), u(own, at, to, cond), f"u(t={t:g}, r={r:g})", sizes, limit)
        if k and first < z.shape[1]:
            yield compare(sample(made, z, cond, 1), sample(u, z, cond, 1), "1 step in chunks", sizes, 10 * limit)
    z, cond = family.example(u, profile.usual(), Rng.seeded(12))
    for n in steps:
        ours, theirs = (sample(net, z, cond, n, shift=shift) for net in (made, u))
        yield compare(ours, theirs, f"{n} steps", profile.usual(), 10 * limit)
        if codec is not None:
            frames = codec.decode(ours), codec.decode(theirs)
            yield compare(*frames, f"frames of {n} steps", profile.usual(), 10 * limit)


def corners(profile: ShapeProfile) -> list[dict[str, int]]:
    """The usual sizes, then the least and the most where they are others."""
    found = [profile.usual()]
    for end in ({n: r.least for n, r in profile.dims.items()}, {n: r.most for n, r in profile.dims.items()}):
        if end not in found:
            found.append(end)
    return found


def compare(ours: Tensor, theirs: Tensor, what: str, sizes: Mapping[str, int], limit: float) -> Measured:
    a, b = ours.double(), theirs.double()
    error = float((a - b).norm() / b.norm().clamp_min(1e-30))
    return Measured(what, dict(sizes), error, limit, float((a - b).abs().max()), float(b.square().mean().sqrt()))


@torch.no_grad()
def latency(
    nets: Mapping[str, FlowMap], family: Family, u: FlowMap, sizes: Mapping[str, int], repeats: int = 3, steps: int = 4
) -> dict[str, Any]:
    """Seconds of one call and of a walk of `steps`, the least of several; taking turns, so that all share luck."""
    z, cond = family.example(u, sizes, Rng.seeded(13))
    first = u.chunks(z.shape[1])[0] if z.ndim > 1 else 1
    at, to = (torch.full((len(z),), s, device=z.device) for s in (0.75, 0.25))
    found: dict[str, dict[str, float]] = {name: {} for name in nets}
    for net in nets.values():
        net(z[:, :first], at, to, cond)  # warm
    for _ in range(repeats):
        for name, net in nets.items():
            call, walk = partial(net, z[:, :first], at, to, cond), partial(sample, net, z, cond, steps)
            for key, run in (("call", call), (f"{steps} steps", walk)):
                value = seconds(run, z.device)
                found[name][key] = min(value, found[name].get(key, value))
    return {"sizes": dict(sizes), "repeats": repeats, "threads": torch.get_num_threads(), "seconds": found}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
