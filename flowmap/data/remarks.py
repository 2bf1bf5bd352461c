"""What to look at in clips that became data: what of them is not seen, or not as a player shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from ..validators import counted
from .format import Index, Origin

MUCH = 0.1
"""Of a picture: to cut away more is worth a warning."""


CUT = "caption cut"
"""A remark on a sample whose caption is longer than the text encoder reads."""


def remarks(index: Index) -> Iterator[str]:
    """Sentences about the clips that the samples are from."""
    origins = [one for of in index.origins.values() for one in of]
    if much := [one for one in origins if one.cut > MUCH]:
        most = max(much, key=lambda one: one.cut)
        mean = sum(one.cut for one in much) / len(much)
        lose = f"{len(much)} of {len(origins)} samples lose" if len(much) > 1 else f"1 of {len(origins)} samples loses"
        yield (
            f"{lose} {mean:.0%} of the picture on average, {most.clip} the most with {most.cut:.0%}: another shape in "
            "--size keeps more, or --buckets with several, such as one upright and one wide"
        )
    fps = index.plan.made_from.get("folder", {}).get("fps")
    if isinstance(fps, float) and (slow := [one for one in origins if one.rate is not None and one.rate < 0.99 * fps]):
        yield f"{_some(slow, 'have')} fewer than {fps:g} frames a second, so frames repeat: --fps takes another rate"
    if weaved := [one for one in origins if "interlaced" in one.remarks]:
        how = "deinterlace, such as with `ffmpeg -i clip.mp4 -vf bwdif new.mp4`"
        yield f"{_some(weaved, 'are')} interlaced, and moving edges have combs: {how}"
    if bright := [one for one in origins if "HDR" in one.remarks]:
        yield f"{_some(bright, 'are')} HDR, and the colours are taken without tone mapping: convert to SDR first"
    if long := [one for one in origins if CUT in one.remarks]:
        yield f"{_some(long, 'have')} a caption that is longer than the text encoder reads, and its end is not used"


def _some(origins: Sequence[Origin], verb: Literal["are", "have"]) -> str:
    """The clips, and the verb that they are the subject of."""
    clips = [*dict.fromkeys(one.clip for one in origins)]
    one = {"are": "is", "have": "has"}[verb]
    named = f"({', '.join(clips[:3])}{', ...' if len(clips) > 3 else ''})"
    return f"{counted(len(clips), 'clip')} {named} {verb if len(clips) > 1 else one}"
