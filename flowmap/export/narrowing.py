"""What a narrow type costs: the export beside the student in float32, as it is on disk.

Parity is beside the student in the export's own precision, which shows that the two compute the same. It does not show
what was lost before either of them ran. No limit is put on that; it is a property of the student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from attrs import asdict, frozen

from .._types import Rng
from ..model import FlowMap
from ..rollout import sample
from .errors import BackendError
from .family import Family
from .verify import relative, walk

if TYPE_CHECKING:
    from ..model import FlowMapSpec

Exact: TypeAlias = Callable[[], FlowMap]
"""Loads the student in float32."""
UNKNOWN = "a network was given in this precision, not the directory that has it in float32"
NO_ROOM = "there is no memory for the student in float32"


@frozen
class Narrowing:
    """errors: ‖export - student in float32‖ / ‖student in float32‖ by what was computed, at the usual sizes."""

    errors: Mapping[str, float]
    not_measured: str | None = None

    @property
    def worst(self) -> float | None:
        return max(self.errors.values(), default=None)

    def json(self) -> dict[str, Any]:
        return {"worst": self.worst, **asdict(self)}


def exact(spec: FlowMapSpec | None, folder: Path | None, device: torch.device) -> Exact | None:
    if spec is None or folder is None:
        return None
    return lambda: spec.load(folder, device=device, dtype=torch.float32).eval()


@torch.no_grad()
def narrowing(
    u: FlowMap,
    made: FlowMap,
    load: Exact | None,
    family: Family,
    sizes: Mapping[str, int],
    steps: Sequence[int],
    shift: float,
) -> Narrowing:
    """One call, and rollouts, on the noise that parity has; u: the narrow student, whose size says what is needed."""
    if load is None:
        return Narrowing({}, UNKNOWN)
    device = next(u.parameters()).device
    free = room(device)
    if free is not None and free < 6 * sum(
        p.numel() for p in u.parameters()
    ):  # half as much again for what it computes
        return Narrowing({}, NO_ROOM)
    z, cond = family.example(u, sizes, Rng.seeded(12))
    own = z[:, : u.chunks(z.shape[1])[0]] if z.ndim > 1 else z
    at, to = (torch.full((len(z),), s, device=device) for s in (1.0, 0.0))
    try:
        wide = load()
        found = {"u(t=1, r=0)": relative(made(own, at, to, cond), wide(own, at, to, cond))}
        for n in steps:
            ours, theirs = (sample(net, z, cond, n, shift=shift) for net in (made, wide))
            found[walk(n, u, z)] = relative(ours, theirs)
    except (torch.OutOfMemoryError, BackendError) as error:
        if isinstance(error, BackendError) and not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        return Narrowing({}, NO_ROOM)
    return Narrowing(found)


def room(device: torch.device) -> int | None:
    """Free bytes, None where this system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    said = Path("/proc/meminfo")
    lines = said.read_text().splitlines() if said.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
