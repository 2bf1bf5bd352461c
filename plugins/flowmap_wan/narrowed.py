"""A pipeline that was written, beside the student that it was written of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen
from torch import Tensor

from flowmap._types import Cache, Cond, Latent, Rng, Time
from flowmap.export.spec import DTYPES
from flowmap.export.verify import LIMITS, ROLLOUT, TIMES, Parity, compare, relative
from flowmap.model import FlowMap
from flowmap.rollout import ode_step
from flowmap.times import euler_grid

from .fidelity import SIDE, load, outputs

if TYPE_CHECKING:
    import torch

    from flowmap.export.forms import Saved
    from flowmap.export.spec import Asked

LONG = 32
"""Steps over which the rounding of a narrow network, and of its state, adds up to what can be seen."""


@frozen
class Narrowed:
    """worst: of the calls and walks that have a limit, relative. rounded_state: of walks whose state is rounded too."""

    worst: float
    rounded_state: Mapping[str, float]


@frozen
class RoundedState:
    """A step as diffusers' schedulers make it: z is rounded to the type of the network's output, each time."""

    dtype: torch.dtype

    def __call__(self, u: FlowMap, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache, rng: Rng) -> Tensor:
        return ode_step(u, z.to(self.dtype).to(z.dtype), t, r, cond, cache, rng).to(self.dtype).to(z.dtype)


def narrowed(student: Saved, asked: Asked, out: Path) -> Narrowed | None:
    """How far the pipeline in `out`, in its precision, is from the student as it is stored, computing in float32.

    ‖difference‖ / ‖student‖ of single calls of the first chunk and of whole videos (which have every chunk of a causal
    student, and its compressed history) in one step and, where it is narrow, in `LONG`, on the CPU. A `ParityError`
    where that is more than the precision explains. One of the two networks is held at a time.
    """
    if not asked.check:
        return None
    dtype, narrow = DTYPES[asked.precision], asked.precision != "float32"
    limit, wide = LIMITS[asked.precision], ROLLOUT[asked.precision]
    grids = [euler_grid(n, student.sampler["shift"]).tolist() for n in ((1, LONG) if narrow else (1,))]
    theirs = list(outputs(load(student), student, TIMES, grids))
    ours = load(student, dtype, out)
    sizes = {"frames": theirs[-1][1].shape[1], "height": SIDE, "width": SIDE}
    found = Parity(
        asked.precision,
        tuple(
            compare(a, b, what, sizes, limit * (1.0 if what.startswith("u(") else wide))
            for (what, b), (_, a) in zip(theirs, outputs(ours, student, TIMES, grids), strict=True)
        ),
    )
    found.require()
    rounded = outputs(ours, student, (), grids, RoundedState(dtype)) if narrow else ()
    exact = dict(theirs)
    return Narrowed(found.worst.error, {what: relative(z, exact[what]) for what, z in rounded})
