"""`flowmap.export.refit(DIR, student, out)`: an export again with other weights, without another trace.

The graphs stay as they are. The new student's tensors, its adapters fused in (W = W₀ + s B A), take the places that
weights.json names; a file that a back end made of them follows, by its own refitter or built again. What comes out is
compared with the new student, as an export is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve
from torch import Tensor

from ..atomic import whole
from ..faults import reach
from ..model import FlowMap, sha256
from ..plugins import collect, installed, named
from . import constants, forms, listed
from .backend import Exporter, check_versions, require
from .errors import ExportError, failing
from .family import Family
from .graph import Graph
from .manifest import MANIFEST, Manifest
from .narrowing import exact
from .plain import Plain
from .spec import DTYPES, Asked, ShapeProfile
from .steps import Report, compare, compared, require_free
from .student import codec_of, loaded, sampler_of
from .weights import Held, Map, Refits, read

if TYPE_CHECKING:
    from .._types import Cond, Latent

MEASURED = ("parity.json", "latency.json")
"""Of the old student."""


def refit(
    path: str | Path,
    student: FlowMap | str | Path,
    out: str | Path,
    *,
    example: tuple[Latent, Cond] | None = None,
    check: bool = True,
    rollouts: tuple[int, ...] | None = None,
    compile: bool | None = None,
    pm: Any = None,
) -> Report:
    """The export in `path` with the weights of `student`, in the directory `out`; `path` stays as it is.

    student: of the same architecture, a network or a directory; example: as it was exported with, if it was. An
    `ExportError` says in a sentence what does not fit. `out` appears when all is done, or not at all.
    """
    old, final, pm = Path(path), Path(out), pm or installed()
    if not old.is_dir():
        raise FileNotFoundError(f"{old}: there is no such directory")
    require_free(final)
    walks = compared(rollouts, compile, check)
    manifest = Manifest.read(old)
    if not manifest.graphs:
        raise ExportError(f"{old}: a {manifest.to} export is files for other programs: write that of the new student")
    exporter: Exporter = named(pm, "flowmap_exporters", manifest.to, listed.names(pm))
    asked = Asked(manifest.precision, manifest.target, manifest.options, check)
    refits = _refits(old, manifest, exporter, asked)
    libraries = require(manifest.to, exporter)
    check_versions(manifest, exporter, libraries)
    manifest.verify(old)
    maps = {built.name: read(old, built.name) for built in manifest.graphs}

    device = torch.device(manifest.target.device if torch.cuda.is_available() else "cpu")
    u, spec, folder = loaded(student, DTYPES[manifest.precision], device, pm)
    family = _family(manifest, u, example, check, pm, old)
    graphs = {graph.name: graph for graph in family.graphs(u)}
    states = _fitting(old, manifest, family.config(u), graphs, maps)

    manifest = evolve(
        manifest,
        weights=sha256({name: value for state in states.values() for name, value in state.items()}),
        versions=libraries,
        source=None if folder is None else forms.source(folder, final),
        sampler=sampler_of(forms.facts(folder), u, spec, manifest.sampler["shift"]),
        encoders={} if spec is None else spec.encoders(),
        refitted=manifest.weights,
        files={},
    )
    codec = codec_of(spec, device) if check and spec is not None else None
    sizes = ShapeProfile(manifest.sizes)
    with whole(final) as partial:
        for file in (p for p in old.iterdir() if p.name not in (MANIFEST, *MEASURED)):
            shutil.copyfile(file, partial / file.name)
        for built in manifest.graphs:
            with failing(f"{manifest.to} cannot refit {built.name!r}"):
                refits.refit(partial, built, manifest, _placed(maps[built.name], states[built.name]))
            reach("export.refitted")
        errors: tuple[float | None, float | None] = (None, None)
        if check:
            wide = exact(spec, folder, device)
            errors = compare(partial, u, sizes, exporter, manifest, family, walks, codec, wide, compile)
        manifest = manifest.write(partial)
    return Report(final, manifest, *errors)


def _refits(old: Path, manifest: Manifest, exporter: Exporter, asked: Asked) -> Refits:
    if not isinstance(exporter, Refits):
        raise ExportError(f"{old}: {manifest.to} has its weights inside what it compiled: export the student again")
    if manifest.precision == "fp8":
        raise ExportError(f"{old}: fp8 has ranges that were measured on its student: export the new one")
    exporter.check_refit(manifest, asked)
    return exporter


def _family(
    manifest: Manifest, u: FlowMap, example: tuple[Latent, Cond] | None, check: bool, pm: Any, old: Path
) -> Family:
    """The one that exported, if `u` is of its kind."""
    if manifest.family == "plain":
        if example is None:
            raise ExportError(f"{old}: was exported from an example, (z, cond): give it again")
        if not check:
            raise ExportError(
                f"{old}: a network that no plugin knows may compute with numbers that nobody sees: its refit is always "
                "compared with it, leave check=False out"
            )
        return Plain(*example)
    families: dict[str, Family] = collect(pm, "flowmap_graphs")
    if manifest.family not in families:
        raise ExportError(f"{old}: of a {manifest.family!r} network, which no plugin here knows")
    if not families[manifest.family].claims(u):
        raise ExportError(f"{old}: of a {manifest.family!r} network, and a {type(u).__name__} is none: export it")
    return families[manifest.family]


def _fitting(
    old: Path, manifest: Manifest, config: Mapping[str, Any], graphs: Mapping[str, Graph], maps: Mapping[str, Map]
) -> dict[str, dict[str, Tensor]]:
    """The new tensors of every graph, where the network is the one that was exported but for their values."""
    new = json.loads(json.dumps(dict(config)))
    for name in sorted(new.keys() | manifest.config.keys()):
        theirs, ours = manifest.config.get(name), new.get(name)
        if theirs != ours:
            raise ExportError(f"{name} of the new student is {ours}, that of {old} is {theirs}: export it again")
    if (names := {*graphs}) != {*maps}:
        raise ExportError(f"the new student is {', '.join(sorted(names))}, {old} is {', '.join(sorted(maps))}")
    states = {name: dict(graph.module.state_dict()) for name, graph in graphs.items()}
    for name, held in maps.items():
        if other := sorted(held.keys() ^ states[name].keys()):
            whose = "the new student alone" if other[0] in states[name] else f"the student of {old} alone"
            raise ExportError(f"{other[0]} is in {whose}: it is another network, export it again")
        for key, was in held.items():
            _same(old, key, was, Held.of(states[name][key], None))
    constants.require_same(old, {name: graph.module for name, graph in graphs.items()})
    return states


def _same(old: Path, key: str, was: Held, now: Held) -> None:
    if now.shape != was.shape:
        raise ExportError(f"{key} of the new student is {now.shape}, that of {old} is {was.shape}: export it again")
    if now.dtype != was.dtype:
        raise ExportError(f"{key} of the new student is {now.dtype}, that of {old} is {was.dtype}: export it again")


def _placed(held: Map, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By initialiser."""
    return {h.initialiser: state[name] for name, h in held.items() if h.initialiser is not None}
