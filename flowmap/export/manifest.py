"""manifest.json: what an export is, made of what, for which machine; written last, read and checked first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, field, frozen

from .errors import CorruptError, NotExportedError, VersionError
from .graph import Graph, Input
from .spec import DTYPES, Precision, Range, ShapeProfile, Target

MANIFEST = "manifest.json"
SCHEMA = 1


@frozen
class File:
    sha256: str
    bytes: int


@frozen
class Built:
    """A graph on disk. file: in the directory. ranges: of every named dimension; one with a single size is baked in.

    layout: of every input in memory; some back ends compute nonsense on another, without a word.
    """

    name: str
    file: str
    inputs: tuple[Input, ...]
    output: str
    ranges: Mapping[str, Range]
    multiples: Mapping[str, int]
    layout: str = "contiguous"

    @classmethod
    def of(cls, graph: Graph, profile: ShapeProfile, precision: Precision, file: str) -> Built:
        inputs = tuple(evolve(i, dtype=i.dtype or DTYPES[precision]) for i in graph.inputs)
        ranges = profile.only(graph.dims).dims
        multiples = {name: n for name, n in graph.multiples.items() if name in ranges}
        return cls(graph.name, file, inputs, graph.output, ranges, multiples)

    def range(self, i: Input, k: int) -> Range:
        """Of dimension k of an input."""
        d = i.dims[k]
        return Range.of(d) if isinstance(d, int) else self.ranges[d]


def _sizes(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(shape)


@frozen
class Manifest:
    """to: the form; family: how the network is run; config: what its runner is told. weights: their sha256.

    machine: what the files are tied to, where they are. sampler: the grid that the student is sampled on. numbers: how
    many weights there are of each type. latent: the shape of the usual one, without the batch.
    source, encoders: the student's directory, the way from here or its name alone, and the hashes of its text encoder
    and VAE, which an export has not. options: what was asked for beyond that. sizes: as asked for, of which those of
    the graphs follow. refitted: the weights of the export that this one was before its weights were changed. switch:
    what, in the environment, makes the files check their inputs themselves.
    """

    to: str
    family: str
    graphs: tuple[Built, ...]
    precision: Precision
    target: Target
    config: Mapping[str, Any]
    weights: str
    sampler: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, str] = field(factory=dict)
    options: Mapping[str, Any] = field(factory=dict)
    sizes: Mapping[str, Range] = field(factory=dict)
    numbers: Mapping[str, int] = field(factory=dict)
    latent: tuple[int, ...] = field(default=(), converter=_sizes)
    source: str | None = None
    encoders: Mapping[str, str] = field(factory=dict)
    refitted: str | None = None
    switch: str | None = None
    files: Mapping[str, File] = field(factory=dict)
    schema: int = SCHEMA

    def write(self, folder: Path) -> Manifest:
        """Beside everything that is in `folder`, with the sum of each file."""
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        whole = evolve(self, files={name: File(*_sum(folder / name)) for name in names})
        (folder / MANIFEST).write_text(json.dumps(asdict(whole, value_serializer=_plain), indent=2) + "\n")
        return whole

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        file = folder / MANIFEST
        if not file.is_file():
            raise NotExportedError(f"{folder}: has no {MANIFEST}, so it is no finished export")
        try:
            found = json.loads(file.read_text())
            if not isinstance(found, dict) or not isinstance(found.get("schema"), int):
                raise ValueError("no schema")
            if found["schema"] > SCHEMA:
                raise VersionError(
                    f"{file}: of schema {found['schema']}, this flowmap reads up to {SCHEMA}: use a newer one"
                )
            return cls._made(found)
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{file}: cannot be read ({error}): export again") from error

    @classmethod
    def _made(cls, found: dict[str, Any]) -> Manifest:
        built = tuple(
            Built(
                **{
                    **g,
                    "inputs": tuple(_input(i) for i in g["inputs"]),
                    "ranges": {name: Range(**r) for name, r in g["ranges"].items()},
                }
            )
            for g in found["graphs"]
        )
        files = {name: File(**f) for name, f in found["files"].items()}
        sizes = {name: Range(**r) for name, r in found.get("sizes", {}).items()}
        own = {"graphs": built, "files": files, "target": Target(**found["target"]), "sizes": sizes}
        return cls(**{**found, **own})

    def verify(self, folder: Path) -> None:
        """Every file is there, and is the one that was written."""
        for name, file in self.files.items():
            path = folder / name
            if not path.is_file():
                raise CorruptError(f"{path}: is missing: export again")
            if (size := path.stat().st_size) != file.bytes:
                raise CorruptError(f"{path}: has {size} bytes, {file.bytes} were written: export again")
            if _sum(path)[0] != file.sha256:
                raise CorruptError(f"{path}: its content is not what was written (sha256): export again")


def _sum(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _plain(instance: object, attribute: object, value: object) -> object:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def _input(found: dict[str, Any]) -> Input:
    dtype = getattr(torch, found["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype {found['dtype']!r}")
    return Input(**{**found, "dtype": dtype, "dims": tuple(found["dims"])})
