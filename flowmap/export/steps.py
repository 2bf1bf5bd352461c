"""The steps of an export: graphs to files, files to calls, calls beside the student."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from attrs import evolve, frozen
from torch import Tensor

from ..doing import tell
from ..experts import fewest
from ..faults import reach
from ..model import FlowMap, sha256
from . import verify
from .backend import Exporter, Job
from .errors import ExportError, failing
from .family import Family
from .graph import Graph, lint, program, require_precision
from .latency import latency
from .manifest import Built, Manifest
from .narrowing import Exact, narrowing
from .runner import Checked
from .spec import DTYPES, Asked, ShapeProfile

if TYPE_CHECKING:
    from ..model import Codec


@frozen
class Report:
    """path: of the export. worst: the largest relative error that was measured, None where nothing was.

    It is beside the student in the precision of the export; narrowing: beside the student in float32, where the export
    is narrower and that was measured.
    """

    path: Path
    manifest: Manifest
    worst: float | None
    narrowing: float | None = None


def require_free(final: Path) -> None:
    """What is there is not written over."""
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise ExportError(f"{final}: is there already: give a directory that is empty or not there")


ROLLOUTS = (1, 4)
"""Numbers of steps of the rollouts that are compared, where none are asked for."""


def compared(rollouts: tuple[int, ...] | None, compile: bool | None, check: bool) -> tuple[int, ...]:
    """As asked for; an `ExportError` where they are no numbers of steps, or where nothing is compared."""
    if not check:
        if given := "rollouts" if rollouts is not None else "compile" if compile else None:
            raise ExportError(f"{given} was given with check=False (--no-check), and nothing is compared or timed then")
        return ()
    walks = ROLLOUTS if rollouts is None else rollouts
    whole = isinstance(walks, Sequence) and all(type(n) is int and n >= 1 for n in walks)
    if not whole or not walks:
        raise ExportError(f"rollouts = {rollouts!r}: must be numbers of steps, such as {ROLLOUTS}")
    return tuple(walks)


def build(
    folder: Path,
    graphs: Sequence[Graph],
    profile: ShapeProfile,
    exporter: Exporter,
    manifest: Manifest,
    asked: Asked,
    device: torch.device,
) -> Manifest:
    """Trace every graph on `device`, see that it is clean, build it; the manifest, with what was built."""
    built: list[Built] = []
    weights: dict[str, Tensor] = {}
    for graph in graphs:
        tell(f"tracing {graph.name!r}")
        traced = program(graph, profile, DTYPES[asked.precision], device)
        lint(traced)
        require_precision(traced, DTYPES[asked.precision])
        weights |= traced.state_dict
        tell(f"building {graph.name!r} for {manifest.to}")
        with failing(f"{manifest.to} cannot build {graph.name!r}"):
            file = exporter.build(Job(traced, graph, profile, asked, folder))
        built.append(Built.of(graph, profile, asked.precision, file))
        reach("export.built")
    return evolve(manifest, graphs=tuple(built), weights=sha256(weights), numbers=numbers(weights))


def numbers(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """How many there are of each type."""
    found: Counter[str] = Counter()
    for value in weights.values():
        found[str(value.dtype).removeprefix("torch.")] += value.numel()
    return dict(found.most_common())


def opened(folder: Path, manifest: Manifest, exporter: Exporter) -> dict[str, Checked]:
    """Every graph, ready to be called."""
    device, found = torch.device(manifest.target.device), {}
    for g in manifest.graphs:
        with failing(f"{manifest.to} cannot load {folder / g.file}"):
            found[g.name] = Checked(g, exporter.load(folder / g.file, g, manifest), device)
    return found


def compare(
    folder: Path,
    u: FlowMap,
    asked: ShapeProfile,
    exporter: Exporter,
    manifest: Manifest,
    family: Family,
    steps: Sequence[int],
    codec: Codec | None,
    exact: Exact | None,
    compile: bool | None = None,
) -> tuple[float, float | None]:
    """Write parity.json and latency.json; the largest error beside `u`, or a `ParityError`.

    And that beside the student in float32, which `exact` loads: None where `u` is it, or where it was not measured.
    """
    device, steps = next(u.parameters()).device, tuple(dict.fromkeys(max(n, fewest(u)) for n in steps))
    calls, said = {}, ""
    for g in manifest.graphs:
        with failing(f"{manifest.to} cannot load {g.file!r}"):
            call, said = exporter.compare(folder / g.file, g, manifest)
        calls[g.name] = Checked(g, call, device)
    made = family.runner(calls, manifest.config)
    tell("comparing with the student")
    found = verify.parity(u, made, family, asked, manifest.precision, steps, manifest.sampler["shift"], codec)
    found.require()
    tell("timing both")
    timed = latency({"eager": u, manifest.to: made}, family, u, asked.usual(), compile=compile)
    parity = {"beside": f"the student in {str(DTYPES[manifest.precision]).removeprefix('torch.')}", **found.json()}
    lost = None
    if manifest.precision != "float32":
        cost = narrowing(u, made, exact, family, asked.usual(), steps, manifest.sampler["shift"])
        parity["narrowing"], lost = {"beside": "the student in float32", **cost.json()}, cost.worst
    for name, record in (("parity", parity), ("latency", timed)):
        (folder / f"{name}.json").write_text(json.dumps({"compared": said, **record}, indent=2) + "\n")
    return found.worst.error, lost
