"""A pipeline that was written, beside the student that it was written of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from flowmap import Rng, sample
from flowmap.export.spec import DTYPES
from flowmap.export.verify import LIMITS, ROLLOUT, TIMES, Parity, compare

if TYPE_CHECKING:
    from torch import Tensor

    from flowmap._types import Cond
    from flowmap.export.forms import Saved
    from flowmap.export.spec import Asked

FRAMES, SIDE, TOKENS = 21, 8, 8
"""Of the latents and the text of a call, where the student does not say how many frames it was trained on."""


def narrowed(student: Saved, asked: Asked, out: Path) -> float | None:
    """How far the pipeline in `out`, in its precision, is from the student as it is stored, computing in float32.

    ‖difference‖ / ‖student‖, the worst of single calls of the first chunk and of one step of the whole video (which
    has every chunk of a causal student, and its compressed history), on the CPU. A `ParityError` where that is more
    than the precision explains. One of the two networks is held at a time.
    """
    if not asked.check:
        return None
    limit, wide = LIMITS[asked.precision], ROLLOUT[asked.precision]
    theirs = list(_calls(student, student.folder, torch.float32))
    ours = list(_calls(student, out, DTYPES[asked.precision]))
    sizes = {"frames": theirs[-1][1].shape[1], "height": SIDE, "width": SIDE}
    found = Parity(
        asked.precision,
        tuple(
            compare(a, b, what, sizes, limit * (wide if what == "1 step" else 1.0))
            for (what, b), (_, a) in zip(theirs, ours, strict=True)
        ),
    )
    found.require()
    return found.worst.error


@torch.no_grad()
def _calls(student: Saved, folder: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    u = student.spec.load(folder, device=torch.device("cpu"), dtype=dtype).eval()
    z, cond = _example(student)
    own = z[:, : u.chunks(z.shape[1])[0]]
    for t, r in TIMES:
        yield f"u(t={t:g}, r={r:g})", u(own, torch.tensor([t]), torch.tensor([r]), cond)
    yield "1 step", sample(u, z, cond, 1, shift=student.sampler["shift"])


def _example(student: Saved) -> tuple[Tensor, Cond]:
    config = json.loads((student.folder / "transformer" / "config.json").read_text())
    frames = student.facts.get("latent_shape", [FRAMES])[0]
    rng, shape = Rng.seeded(11), (1, frames, config["in_channels"], SIDE, SIDE)
    z, text = (rng.noise_like(torch.zeros(s)) for s in (shape, (1, TOKENS, config["text_dim"])))
    text[:, -1:] = 0.0
    return z, {"text": text}
