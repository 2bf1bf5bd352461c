"""What a back end is: it turns a traced program into a file, and a file into something to call."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from attrs import field, frozen
from torch.export import ExportedProgram

from .errors import ArchitectureError, MissingPackageError, NoDeviceError, VersionError
from .graph import Call, Graph
from .manifest import Built, Manifest
from .spec import Asked, ShapeProfile, Target


@frozen
class Available:
    """Whether a back end can be used here, and if not, why, with what to do. versions: of its libraries."""

    ok: bool
    reason: str = ""
    versions: Mapping[str, str] = field(factory=dict)


@frozen(eq=False)
class Job:
    """One graph to build. folder: where; what else is written there is part of the export."""

    program: ExportedProgram
    graph: Graph
    profile: ShapeProfile
    asked: Asked
    folder: Path


class Exporter(Protocol):
    """A form of export, registered by name (`flowmap_exporters`).

    Nothing heavy is imported before `build` and `load`.
    """

    @property
    def exact(self) -> tuple[str, ...]:
        """The packages whose release must be the one that built."""

    @property
    def builds_ahead(self) -> bool:
        """Whether it builds for GPUs that are not here."""

    @property
    def bound(self) -> bool:
        """Whether what it builds is tied to the kind of machine that it was built on."""

    def available(self) -> Available:
        """Never raises, and touches no GPU library in this process."""

    def check(self, asked: Asked) -> None:
        """An `ExportError` where this cannot be built, before anything is loaded."""

    def build(self, job: Job) -> str:
        """Write the graph; returns the name of its file."""

    def compare(self, file: Path, built: Built, manifest: Manifest) -> tuple[Call, str]:
        """What can be run here in the place of what `build` wrote, and what that is; `load`, where it runs here."""

    def load(self, file: Path, built: Built, manifest: Manifest) -> Call:
        """What `build` wrote, ready to be called."""


@runtime_checkable
class ChecksItself(Protocol):
    """An exporter whose files check what they are called with, where the environment says so."""

    @property
    def switch(self) -> str:
        """NAME=VALUE."""


def require(to: str, exporter: Exporter) -> Mapping[str, str]:
    """The versions of its libraries, or a `MissingPackageError`."""
    if not (found := exporter.available()).ok:
        raise MissingPackageError(f"{to}: {found.reason}")
    return found.versions


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in ("flowmap-distill", "torch", "diffusers", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(target: Target) -> dict[str, str]:
    """What native code is tied to: this processor's instructions, or this GPU's architecture."""
    if target.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        return {"device": torch.cuda.get_device_name(), "capability": f"{major}.{minor}"}
    return {"processor": platform.machine(), "instructions": torch.backends.cpu.get_cpu_capability()}


INSTRUCTIONS = ("DEFAULT", "AVX2", "AVX512")
"""Of x86, each with what the ones before it have."""


def check_machine(manifest: Manifest) -> None:
    """Whether this machine is one that the export was made for."""
    target = manifest.target
    if target.device == "cuda" and not torch.cuda.is_available():
        raise NoDeviceError(f"this {manifest.to} export runs on a CUDA GPU, and there is none here")
    if not manifest.machine and not target.capabilities:
        return
    here = machine(target)
    if target.device == "cuda":
        allowed = target.capabilities or (manifest.machine["capability"],)
        if here["capability"] not in allowed:
            raise ArchitectureError(
                f"this {manifest.to} export is for compute capability {' or '.join(allowed)}, the GPU here "
                f"({here['device']}) has {here['capability']}: export again for it"
            )
        return
    made, have = manifest.machine["instructions"], here["instructions"]
    more = made in INSTRUCTIONS and have in INSTRUCTIONS and INSTRUCTIONS.index(have) >= INSTRUCTIONS.index(made)
    if here["processor"] != manifest.machine["processor"] or not (more or made == have):
        raise ArchitectureError(
            f"this {manifest.to} export is for {manifest.machine['processor']} processors with {made}, the one here is "
            f"{here['processor']} with {have}: export again on it"
        )


def check_versions(manifest: Manifest, exporter: Exporter, here: Mapping[str, str]) -> None:
    """Whether the libraries that read an export are the ones that wrote it, where that matters."""
    for name in exporter.exact:
        made, have = manifest.versions.get(name), here.get(name)
        if made != have:
            raise VersionError(
                f"this {manifest.to} export was made with {name} {made} and is tied to it, here is {have}: install "
                f"that release, or export again"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries warn of their own deprecated calls."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", kind)
        yield
