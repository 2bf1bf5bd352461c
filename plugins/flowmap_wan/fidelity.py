"""What a student computes, to be compared with what is made of its files: calls, and walks of a whole video."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from attrs import frozen

from flowmap import FlowMap, Rng
from flowmap.export.errors import ParityError
from flowmap.export.verify import relative
from flowmap.rollout import Step, ode_step, walk

if TYPE_CHECKING:
    from torch import Tensor

    from flowmap._types import Cond
    from flowmap.export.forms import Saved

FRAMES, SIDE, TOKENS = 21, 8, 8
"""Of the latents and the text of a call, where the student does not say how many frames it was trained on."""
Times: TypeAlias = Sequence[float]


CALL, WALK = 0.05, 0.1
"""What an extracted LoRA may be off its student, relative: a call, and a whole video."""


@frozen
class Fidelity:
    """By what was computed: ‖made - student‖ / ‖student‖, and what the student in bfloat16 is off, to compare with."""

    errors: Mapping[str, float]
    bf16: Mapping[str, float]

    @property
    def worst(self) -> float:
        return max(self.errors.values())

    def require(self, rank: int) -> None:
        for what, error in self.errors.items():
            limit = CALL if what.startswith("u(") else WALK
            if not error <= limit:
                raise ParityError(
                    f"rank = {rank}: the base with what was extracted is off the student by {error:.1%} in {what}, at "
                    f"most {limit:.0%} is allowed: ask for more, or export it --to diffusers; nothing was written"
                )


def fidelity(
    student: Saved, make: Callable[[], FlowMap], calls: Sequence[tuple[float, float]], grids: Sequence[Times]
) -> Fidelity:
    """One network is held at a time."""
    exact = dict(outputs(load(student), student, calls, grids))

    def off(u: FlowMap) -> dict[str, float]:
        return {what: relative(z, exact[what]) for what, z in outputs(u, student, calls, grids)}

    return Fidelity(off(make()), off(load(student, torch.bfloat16)))


def load(student: Saved, dtype: torch.dtype = torch.float32, folder: Path | None = None) -> FlowMap:
    """The student, or what was written of it in `folder`, on the CPU."""
    return student.spec.load(folder or student.folder, device=torch.device("cpu"), dtype=dtype).eval()


@torch.no_grad()
def outputs(
    u: FlowMap, student: Saved, calls: Iterable[tuple[float, float]], grids: Iterable[Times], step: Step = ode_step
) -> Iterator[tuple[str, Tensor]]:
    """u(z, t, r) of the first chunk at each of `calls`, and the ends of walks along each of `grids`."""
    z, cond = example(student)
    own = z[:, : u.chunks(z.shape[1])[0]]
    for t, r in calls:
        yield f"u(t={t:g}, r={r:g})", u(own, torch.tensor([t]), torch.tensor([r]), cond)
    for grid in grids:
        steps = len(grid) - 1
        found = walk(u, z, cond, torch.tensor(grid), Rng.seeded(0), step=step)
        yield ("1 step" if steps == 1 else f"{steps} steps"), found


def example(student: Saved) -> tuple[Tensor, Cond]:
    """Noise of a video of 64 × 64 pixels, and a text."""
    config = json.loads((student.folder / "transformer" / "config.json").read_text())
    frames = student.facts.get("latent_shape", [FRAMES])[0]
    rng, shape = Rng.seeded(11), (1, frames, config["in_channels"], SIDE, SIDE)
    z, text = (rng.noise_like(torch.zeros(s)) for s in (shape, (1, TOKENS, config["text_dim"])))
    text[:, -1:] = 0.0
    return z, {"text": text}
