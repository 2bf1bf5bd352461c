"""What is measured of samples to see whether they are sound: numbers beside the teacher's, which need no classifier.

Latents are [N, F, C, H, W], pictures [N, frames, 3, height, width] in [0, 1]. A ratio is a sampler's over the teacher's
on the same noise and prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .distances import by_prompt, spread_of

FAINT = 0.005
"""Of full scale: too faint to be seen. It stands on both sides of a ratio, so that two empty pictures are alike."""
STILL = 0.1
"""A frame that changes by less than this share of what the teacher's change on average stands still."""


def of_latents(x: Tensor, teacher: Tensor, prompts: Sequence[str], chunks: Sequence[int]) -> dict[str, float]:
    """Offset and deviation, drift, variety, paired error. chunks: how many frames are made together, see `drift`."""
    x, teacher = x.double().cpu(), teacher.double().cpu()
    return {
        "latent_mean": offset(x, teacher),
        "latent_deviation": float((_variance(x) / _variance(teacher)).mean().sqrt()),
        "drift": drift(x, teacher, chunks),
        "variety": _ratio(within_prompts(x, prompts), within_prompts(teacher, prompts)),
        "paired_error": float(((x - teacher).square().mean() / teacher.square().mean()).sqrt()),
    }


def of_pictures(videos: Tensor, teacher: Tensor) -> dict[str, float]:
    """Saturation, contrast, grain; of videos motion and still frames, too. All but grain are of `coarse` pictures."""
    a, b = videos.float().cpu(), teacher.float().cpu()
    x, y = coarse(a), coarse(b)
    pairs = {"saturation": (saturation(x), saturation(y)), "contrast": (contrast(x), contrast(y))}
    pairs["grain"] = grain(a), grain(b)
    found = {name: _ratio(made + FAINT, real + FAINT) for name, (made, real) in pairs.items()}
    if videos.shape[1] > 1:
        moves, theirs = motion(x), motion(y)
        found["motion"] = _ratio(float(moves.mean()) + FAINT, float(theirs.mean()) + FAINT)
        if float(theirs.mean()) > FAINT:
            least = STILL * float(theirs.mean())
            found["still"] = float((moves < least).double().mean() - (theirs < least).double().mean())
    return found


def coarse(videos: Tensor) -> Tensor:
    """Averaged over squares, at least eight to the shorter side, so that noise is seen by `grain` alone."""
    side = max(1, min(videos.shape[-2:]) // 8)
    return nnf.avg_pool2d(videos.flatten(0, 1), side).unflatten(0, videos.shape[:2])


def saturation(videos: Tensor) -> float:
    """Mean of max − min over the colours of a pixel."""
    return float((videos.amax(2) - videos.amin(2)).mean())


def contrast(videos: Tensor) -> float:
    """Deviation of brightness within a frame, mean over frames."""
    return float(videos.mean(2).flatten(2).std(2, correction=0).mean())


def grain(videos: Tensor) -> float:
    """Mean | what a 3 × 3 average takes away from brightness |: noise raises it, blur lowers it."""
    grey = videos.mean(2)
    return float((grey - nnf.avg_pool2d(nnf.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, stride=1)).abs().mean())


def motion(videos: Tensor) -> Tensor:
    """Mean | change | from each frame to the next, but for the frame's mean colour, [N, frames − 1]: no fading."""
    return (videos - videos.mean((3, 4), keepdim=True)).diff(dim=1).abs().mean((2, 3, 4))


def offset(x: Tensor, teacher: Tensor) -> float:
    """How far the means of the channels are apart, in the teacher's deviations, root mean square over channels."""
    return float(((x.mean((0, 1, 3, 4)) - teacher.mean((0, 1, 3, 4))).square() / _variance(teacher)).mean().sqrt())


def drift(x: Tensor, teacher: Tensor, chunks: Sequence[int]) -> float:
    """How much more than the teacher's the latents change from the first chunk to the last.

    Of each channel the change of the mean, in deviations of the first chunk, and of the logarithm of the deviation;
    root mean square of both, over channels. Of frames that are made all at once the first and the last quarter are
    compared. Not a number of single frames.
    """
    frames = x.shape[1]
    edges = [0, *accumulate(chunks)] if len(chunks) > 1 else [0, *_quarters(frames)]
    if frames == 1 or edges[-1] != frames:
        return math.nan
    parts = [*pairwise(edges)]
    (first, stop), (start, end) = parts[0], parts[-1]
    changes = []
    for latents in (x, teacher):
        here, there = latents[:, first:stop], latents[:, start:end]
        moved = (there.mean((0, 1, 3, 4)) - here.mean((0, 1, 3, 4))) / _variance(here).sqrt()
        changes.append(torch.cat([moved, 0.5 * (_variance(there) / _variance(here)).log()]))
    return float((changes[0] - changes[1]).square().mean().sqrt())


def within_prompts(x: Tensor, prompts: Sequence[str]) -> float:
    """Mean distance of two samples of one prompt, mean over the prompts; not a number where each has one sample."""
    found = [spread_of(x[rows]) for rows in by_prompt(prompts).values()]
    return math.fsum(found) / len(found) if found else math.nan


def finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _quarters(frames: int) -> list[int]:
    part = max(1, frames // 4)
    return sorted({part, frames - part, frames})


def _variance(x: Tensor) -> Tensor:
    """Of each channel, [C]; above 0."""
    return x.transpose(0, 2).flatten(1).var(1, correction=0).clamp_min(1e-12)


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan
