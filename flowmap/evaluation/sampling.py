"""Videos from a student on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from .._types import Rng
from ..model import Codec, FlowMapSpec
from ..rollout import sample
from .previews import tile, write_video


def grid_of_samples(
    backbone: FlowMapSpec,
    student: Path,
    prompts: Sequence[str],
    steps: Sequence[int],
    seed: int,
    size: tuple[int, int, int] | None,
    out: str | Path,
) -> None:
    """One video with a row a prompt and a column a number of steps; along a row the noise is the same."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = backbone.codec(device=device, dtype=torch.float32)
    shape = _shape(codec, student, size)
    cond = codec.encode_prompts(prompts)
    u = backbone.load(student, device=device, dtype=torch.float32)
    noise = Rng.seeded(seed).noise_like(torch.zeros(len(prompts), *shape, device=device))
    made = [codec.decode(sample(u, noise, cond, n, shift=backbone.shift)) for n in steps]
    write_video(tile(torch.stack(made, 1).flatten(0, 1).cpu(), columns=len(steps)), Path(out))


def _shape(codec: Codec, student: Path, size: tuple[int, int, int] | None) -> Sequence[int]:
    """Of a latent: of `size`, or what the student was trained on."""
    if size is not None:
        return codec.latent_shape(*size)
    try:
        return list(json.loads((student / "flowmap.json").read_text())["latent_shape"])
    except FileNotFoundError:
        raise ValueError(f"{student} has no flowmap.json, which says a video's size: say --size FxHxW") from None
