"""How many frames a clip has, without decoding one."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import Any

from .decode import Source, opened


def reaches(source: Source, name: str, fps: Fraction | None, frames: int) -> int | None:
    """How many frames `decode.Take` finds in a file, at `fps` a second; None where it is not known without decoding.

    What the head says is taken where it is enough for `frames`; else all packets are counted, since heads err.
    """
    with opened(source, name) as container:
        stream = container.streams.video[0]
        said = _said(stream, fps)
        if said is None or said >= frames:
            return said
    return counted(source, name, fps)


def counted(source: Source, name: str, fps: Fraction | None) -> int:
    """The same of the times of all packets."""
    with opened(source, name) as container:
        stream = container.streams.video[0]
        origin, usual = stream.start_time or 0, _usual(stream)
        shown = [p for p in container.demux(stream) if p.pts is not None and not p.is_discard]
        if fps is None or not shown:
            return len(shown)
        last = max(shown, key=lambda packet: packet.pts)
        duration = last.duration * stream.time_base if last.duration else usual
        return _until((last.pts - origin) * stream.time_base, duration, fps)


def _said(stream: Any, fps: Fraction | None) -> int | None:
    if fps is None or not stream.duration:
        return (stream.frames or None) if fps is None else None
    usual = _usual(stream)
    return _until(stream.duration * stream.time_base - usual, usual, fps)


def _usual(stream: Any) -> Fraction:
    return 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)


def _until(last: Fraction, duration: Fraction, fps: Fraction) -> int:
    """The last frame counts for the half of its duration, as `decode.nearest` has it."""
    return max(1, floor((last + duration / 2) * fps) + 1)
