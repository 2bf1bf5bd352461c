"""Forms of a student that other programs read: written from its directory, with no graph and nothing to call."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import field, frozen

from ..atomic import whole
from ..faults import reach
from ..model import FlowMap, FlowMapSpec, origin
from ..plugins import backbone, collect
from .backend import versions
from .errors import ExportError
from .listed import forms_of, names
from .manifest import Manifest
from .spec import Asked, Target

FACTS = "flowmap.json"
"""What `distill` wrote beside a student's weights."""
PRECISIONS = ("float32", "bf16", "fp16")


@frozen(eq=False)
class Saved:
    """A student on disk. folder: its own, not the run's; facts: what `distill` wrote beside the weights, if it did."""

    folder: Path
    spec: FlowMapSpec
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path, pm: Any) -> Saved:
        folder = located(path)
        return cls(folder, backbone(str(folder), pm), facts(folder))

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What its run says that it was made of, where it lies in one. It is of this machine: no export repeats it."""
        file = self.folder.parent / "recipe.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    @property
    def sampler(self) -> dict[str, Any]:
        """What a sampler must know. steps: how many are right with the flow's own grid; all, but for a consistency
        student, which renews the noise between steps."""
        kind = self.facts.get("sampler", "flow_map")
        return {
            "shift": self.facts.get("shift", self.spec.shift),
            "guidance": 1.0,
            "built_in_guidance": self.facts.get("guidance"),
            "sampler": kind,
            "steps": "any" if kind == "flow_map" else [1],
        }


@frozen
class Written:
    """What a form says of what it wrote, for the manifest.

    weights: sha256 of all tensors. worst: the largest relative error beside the student, None where none was measured.
    """

    weights: str
    sampler: Mapping[str, Any]
    config: Mapping[str, Any] = field(factory=dict)
    worst: float | None = None


class Form(Protocol):
    """Of a student, for other programs. Nothing heavy is imported before `write`."""

    def check(self, student: Saved, asked: Asked) -> None:
        """An `ExportError` where this student has no such form, before anything is loaded."""

    def write(self, student: Saved, asked: Asked, out: Path) -> Written:
        """Fill the empty directory `out`, a README among its files."""


def find(to: str, student: FlowMap | str | Path, pm: Any) -> tuple[Form, Saved] | None:
    """The form and the student that it is written of; None where `to` is a back end, or nothing at all."""
    if to in collect(pm, "flowmap_exporters"):
        return None
    registered = names(pm)
    if isinstance(student, FlowMap):
        if to in registered:
            raise ExportError(f"{to} is written from a student's directory, and a network was given: save that first")
        return None
    saved = Saved.of(Path(student), pm)
    known: Mapping[str, Form] = forms_of(saved.spec)
    if to in known:
        return known[to], saved
    if to in registered:
        have = ", ".join(known) or "none"
        raise ExportError(f"{saved.folder}: a student of {type(saved.spec).__name__} has no form {to!r}: it has {have}")
    return None


def write(to: str, form: Form, student: Saved, asked: Asked, out: Path) -> tuple[Manifest, float | None]:
    """`out` appears when all is done, or not at all."""
    if asked.precision not in PRECISIONS:
        raise ExportError(f"precision = {asked.precision!r}: {to} has {', '.join(PRECISIONS)}")
    if asked.target != Target():
        raise ExportError(f"{to} is files for any machine: it takes no device and no compute capability")
    form.check(student, asked)
    with whole(out) as partial:
        made = form.write(student, asked, partial)
        reach("export.built")
        manifest = Manifest(
            to=to,
            family="",
            graphs=(),
            precision=asked.precision,
            target=asked.target,
            config=made.config,
            weights=made.weights,
            sampler=made.sampler,
            versions=versions("peft", "safetensors"),
            options={name: origin(v) if isinstance(v, (str, Path)) else v for name, v in asked.options.items()},
            source=source(student.folder, out),
        ).write(partial)
    return manifest, made.worst


def located(path: Path) -> Path:
    """The student's own directory, where `path` may be its run's."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such directory")
    return path / "student" if (path / "student").is_dir() and not (path / "model_index.json").is_file() else path


def source(folder: Path, out: Path) -> str:
    """What an export in `out` says of the student that it was made of, in `folder`.

    The way from the one to the other where both were given by relative paths, which name no folder above; else the name
    alone.
    """
    ways = [Path(os.path.normpath(path)) for path in (folder, out)]
    if any(way.is_absolute() or ".." in way.parts for way in ways):
        return origin(folder.absolute())
    return Path(os.path.relpath(*ways)).as_posix()


def facts(folder: Path | None) -> dict[str, Any]:
    """What `distill` wrote beside the weights."""
    file = None if folder is None else folder / FACTS
    return {} if file is None or not file.is_file() else json.loads(file.read_text())
