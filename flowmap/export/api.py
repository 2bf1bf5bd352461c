"""`flowmap.export(...)` and `flowmap.export.load(DIR)`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from attrs import frozen
from torch import nn

from ..model import FlowMap
from ..plugins import backbone, collect, installed, named
from ..training.publish import whole
from .backend import Exporter, check_machine, check_versions, machine, require
from .errors import ExportError
from .graph import Family, Graph
from .manifest import MANIFEST, Manifest
from .plain import Plain
from .runner import Checked
from .spec import DTYPES, Asked, Precision, Range, ShapeProfile, Target
from .steps import build, compare, opened

if TYPE_CHECKING:
    from .._types import Cond, Latent
    from ..model import Codec, FlowMapSpec

Sizes = Mapping[str, int | tuple[int, int, int] | Range]


@frozen
class Report:
    """path: of the export. worst: the largest relative error that was measured, None where nothing was."""

    path: Path
    manifest: Manifest
    worst: float | None


@frozen
class Export:
    """A callable with a method: `flowmap.export(...)` writes, `flowmap.export.load(...)` reads."""

    def __call__(
        self,
        student: FlowMap | str | Path,
        to: str,
        out: str | Path,
        *,
        sizes: Sizes | None = None,
        precision: Precision = "float32",
        target: Target | None = None,
        example: tuple[Latent, Cond] | None = None,
        check: bool = True,
        steps: tuple[int, ...] = (1, 4),
        options: Mapping[str, Any] | None = None,
        pm: Any = None,
    ) -> Report:
        """Write `student` in the form `to` into the directory `out`, and compare the two; one artefact, any steps.

        student: a network, or a directory that `distill` wrote. sizes: of batch, frames, height, width (of latents)
        and text, each one size or (least, usual, most); those of training by default. example: (z, cond) for a
        network that no plugin knows how to export. check: measure parity, and fail where it is worse than the limit of
        `precision`. steps: of the rollouts that are compared. options: of the back end.

        An `ExportError` says in a sentence what cannot be done. `out` appears when all is done, or not at all.
        """
        if precision not in DTYPES:
            raise ExportError(f"precision = {precision!r}: must be one of {', '.join(DTYPES)}")
        asked, pm = Asked(precision, target or Target(), dict(options or {}), check), pm or installed()
        exporter: Exporter = named(pm, "flowmap_exporters", to)
        final = Path(out)
        if final.exists() and (not final.is_dir() or any(final.iterdir())):
            raise ExportError(f"{final}: is there already: give a directory that is empty or not there")
        if asked.target.device == "cuda" and not torch.cuda.is_available() and not exporter.builds_ahead:
            raise ExportError(f"{to} for a CUDA GPU is built on one, and there is none here")
        exporter.check(asked)
        libraries = require(to, exporter)

        device = torch.device(asked.target.device if torch.cuda.is_available() else "cpu")  # where it is traced
        u, spec, folder = _student(student, DTYPES[precision], device, pm)
        facts = _facts(folder)
        name, family = family_of(u, example, pm)
        known = {name: n for name, n in {**family.sizes(u), **_trained(facts)}.items() if name in family.dims}
        graphs, wanted = family.graphs(u), ShapeProfile({**known, **(sizes or {})})
        check_sizes(family, u, wanted, graphs)

        manifest = Manifest(
            to=to,
            family=name,
            graphs=(),
            precision=precision,
            target=asked.target,
            config=family.config(u),
            weights="",
            sampler={"shift": facts.get("shift", spec.shift if spec else 1.0)},
            versions=libraries,
            machine=machine(asked.target) if exporter.bound else {},
            options=asked.options,
            source=None if folder is None else str(folder.resolve()),
        )
        codec = _codec(spec, device) if check and spec is not None else None
        with whole(final) as partial:
            manifest = build(partial, graphs, family.profile(u, wanted), exporter, manifest, asked, device)
            worst = compare(partial, u, wanted, exporter, manifest, family, steps, codec) if check else None
            manifest = manifest.write(partial)
        return Report(final, manifest, worst)

    def load(self, path: str | Path, *, pm: Any = None) -> nn.Module:
        """The export in `path`, to be called as diffusers calls its transformer: `pipe.transformer = load(DIR)`.

        An `ExportError` of a kind that says what does not fit, before any back end is started.
        """
        calls, manifest, family = _open(Path(path), pm or installed())
        return family.transformer(family.runner(calls, manifest.config), calls, manifest.config)

    def flow_map(self, path: str | Path, *, pm: Any = None) -> FlowMap:
        """The same as a `FlowMap`, for `flowmap.sample`; a causal one with its history."""
        calls, manifest, family = _open(Path(path), pm or installed())
        return family.runner(calls, manifest.config)


def _open(folder: Path, pm: Any) -> tuple[dict[str, Checked], Manifest, Family]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such directory")
    manifest = Manifest.read(folder)
    exporter: Exporter = named(pm, "flowmap_exporters", manifest.to)
    check_machine(manifest)
    check_versions(manifest, exporter, require(manifest.to, exporter))
    manifest.verify(folder)
    families: dict[str, Family] = {"plain": Plain(), **collect(pm, "flowmap_graphs")}
    if manifest.family not in families:
        raise ExportError(f"{folder}: of a {manifest.family!r} network, which no plugin here knows how to run")
    return opened(folder, manifest, exporter), manifest, families[manifest.family]


def is_export(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _student(
    student: FlowMap | str | Path, dtype: torch.dtype, device: torch.device, pm: Any
) -> tuple[FlowMap, FlowMapSpec | None, Path | None]:
    """The network, and its spec and directory where it came from one."""
    if isinstance(student, FlowMap):
        return student.to(device).eval(), None, None
    folder = Path(student)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such directory")
    if (folder / "student").is_dir() and not (folder / "model_index.json").is_file():
        folder = folder / "student"
    spec = backbone(str(folder), pm)
    return spec.load(folder, device=device, dtype=dtype).eval(), spec, folder


def _facts(folder: Path | None) -> dict[str, Any]:
    """What `distill` wrote beside the weights."""
    file = None if folder is None else folder / "flowmap.json"
    return {} if file is None or not file.is_file() else json.loads(file.read_text())


def family_of(u: FlowMap, example: tuple[Latent, Cond] | None, pm: Any) -> tuple[str, Family]:
    if example is not None:
        return "plain", Plain(*example)
    for name, family in collect(pm, "flowmap_graphs").items():
        if family.claims(u):
            return name, family
    raise ExportError(f"no plugin knows how to export a {type(u).__name__}: give an example, (z, cond)")


def check_sizes(family: Family, u: FlowMap, asked: ShapeProfile, graphs: tuple[Graph, ...]) -> None:
    """Every size that is needed is there, is one that the network has, and is one that it takes."""
    if unknown := [name for name in asked.dims if name not in family.dims]:
        raise ExportError(f"sizes has {unknown[0]!r}: this network has {', '.join(family.dims)}")
    if missing := [name for name in family.dims if name not in asked.dims]:
        raise ExportError(f"no size is given for {', '.join(missing)}: say sizes, which are of latents")
    for graph in graphs:
        graph.check(family.profile(u, asked))


def _trained(facts: Mapping[str, Any]) -> dict[str, int]:
    if "latent_shape" not in facts:
        return {}
    frames, _, height, width = facts["latent_shape"]
    return {"frames": frames, "height": height, "width": width}


def _codec(spec: Any, device: torch.device) -> Codec | None:
    """To compare frames, where the directory has what makes them."""
    try:
        return cast("Codec", spec.codec(device=device, dtype=torch.float32))
    except (NotImplementedError, OSError, ValueError):
        return None


export = Export()
