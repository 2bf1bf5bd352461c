"""What a student's directory is, in words for whoever is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from . import mistaken

Kind: TypeAlias = Literal["half", "pipeline", "weights"]
"""One of two experts alone; what diffusers loads; what flowmap alone loads."""

WITHIN = "within"
"""Of `flowmap.json`: the times that the student serves, where these are not all."""


def kind(student: Path) -> Kind:
    if WITHIN in mistaken.read(student / "flowmap.json"):
        return "half"
    return "pipeline" if (student / mistaken.INDEX).is_file() else "weights"


def own(student: Path) -> bool:
    """Whether it is of a network of the user's own, which the directory has not."""
    return "module" in (mistaken.read(student / "flowmap.json").get("network") or {})


def half(student: Path) -> str:
    """Which half, and what it is for."""
    low, high = mistaken.read(student / "flowmap.json")[WITHIN]
    name, other = ("high", "low") if high == 1.0 else ("low", "high")
    return (
        f"the {name} expert alone, for t from {low:g} to {high:g}: half of a student, which no sampler takes until the "
        f"{other} one is distilled beside it"
    )


def told(student: Path) -> str:
    """For a list of what a run has left."""
    which = kind(student)
    if which == "half":
        return "half of a student, one of two experts"
    return "the student, a pipeline that diffusers loads" if which == "pipeline" else "the student's weights"
