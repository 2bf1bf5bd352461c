"""`flowmap.export(...)` and `flowmap.export.load(DIR)`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import nn

from .._types import Rng
from ..atomic import whole
from ..model import FlowMap
from ..plugins import collect, installed, named
from . import forms, fp8, listed
from .backend import ChecksItself, Exporter, check_machine, check_versions, machine, require
from .errors import ExportError
from .family import Family
from .manifest import MANIFEST, Manifest
from .narrowing import exact
from .plain import Plain
from .refit import refit
from .runner import Checked
from .spec import DTYPES, Asked, Precision, ShapeProfile, Target
from .steps import Report, build, compare, compared, opened, require_free
from .student import Sizes, check_sizes, codec_of, family_of, known_sizes, loaded, sampler_of

if TYPE_CHECKING:
    from .._types import Cond, Latent


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
        compile: bool | None = None,
        rollouts: tuple[int, ...] | None = None,
        options: Mapping[str, Any] | None = None,
        backbone: Any = None,
        pm: Any = None,
    ) -> Report:
        """Write `student` in the form `to` into the directory `out`, and compare the two; one artefact, any steps.

        student: a network, or a directory that `distill` wrote. sizes: of batch, frames, height, width (of latents)
        and text, each one size or (least, usual, most); those of training by default. example: (z, cond) for a
        network that no plugin knows how to export. check: measure parity with the student in `precision`, and fail
        where it is worse than the limit of that; and how far the student in float32 is, without a limit. compile: time
        the student under torch.compile too; None is on a GPU alone, since a compilation takes minutes on a CPU.
        rollouts: the numbers of steps of the rollouts that are compared, (1, 4) by default. options: of the form, such
        as {"steps": 8} for comfyui. backbone: of `flowmap.load`. An argument that the form does not read is refused.

        An `ExportError` says in a sentence what cannot be done. `out` appears when all is done, or not at all.
        """
        if precision not in DTYPES:
            raise ExportError(f"precision = {precision!r}: must be one of {', '.join(DTYPES)}")
        asked, pm = Asked(precision, target or Target(), dict(options or {}), check), pm or installed()
        form = forms.find(to, student, pm)
        final = Path(out)
        require_free(final)
        if form is not None:
            unread = {
                "sizes": sizes,
                "example": example,
                "compile": compile,
                "rollouts": rollouts,
                "backbone": backbone,
            }
            if given := next((name for name, value in unread.items() if value is not None), None):
                raise ExportError(
                    f"{to} does not read {given}: it writes what a directory has, for any size, and no graph to call"
                )
            return Report(final, *forms.write(to, *form, asked, final))
        exporter: Exporter = named(pm, "flowmap_exporters", to, listed.names(pm))
        walks = compared(rollouts, compile, check)
        if asked.target.device == "cuda" and not torch.cuda.is_available() and not exporter.builds_ahead:
            raise ExportError(f"{to} for a CUDA GPU (device, --device) is built on one, and there is none here")
        exporter.check(asked)
        libraries = require(to, exporter)

        device = torch.device(asked.target.device if torch.cuda.is_available() else "cpu")  # where it is traced
        u, spec, folder = loaded(student, DTYPES[precision], device, pm, backbone)
        if u.history_noise:
            raise ExportError(f"the student's history_noise = {u.history_noise!r}: graphs remember clean chunks alone")
        facts = forms.facts(folder)
        name, family = family_of(u, example, pm, facts)
        graphs, wanted = family.graphs(u), ShapeProfile({**known_sizes(family, u, facts), **(sizes or {})})
        check_sizes(family, u, wanted, graphs)

        manifest = Manifest(
            to=to,
            family=name,
            graphs=(),
            precision=precision,
            target=asked.target,
            config=family.config(u),
            weights="",
            sampler=sampler_of(facts, u, spec, 1.0),
            versions=libraries,
            machine=machine(asked.target) if exporter.bound else {},
            options=asked.options,
            switch=exporter.switch if isinstance(exporter, ChecksItself) else None,
            sizes=wanted.dims,
            latent=family.example(u, wanted.usual(), Rng.seeded(0))[0].shape[1:],
            source=None if folder is None else forms.source(folder, final),
            encoders={} if spec is None else spec.encoders(),
        )
        codec = codec_of(spec, device) if (check or precision == "fp8") and spec is not None else None
        if precision == "fp8":
            shift = manifest.sampler["shift"]
            graphs = fp8.quantized(graphs, u, family, wanted, manifest.config, device, shift, codec)
        with whole(final) as partial:
            manifest = build(partial, graphs, family.profile(u, wanted), exporter, manifest, asked, device)
            errors: tuple[float | None, float | None] = (None, None)
            if check:
                wide = exact(spec, folder, device)
                errors = compare(partial, u, wanted, exporter, manifest, family, walks, codec, wide, compile)
            manifest = manifest.write(partial)
        return Report(final, manifest, *errors)

    def refit(
        self,
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
        """The export in `path` with the weights of `student`, which has the same shape, in the directory `out`.

        Nothing is traced again; adapters of the student are fused in. `path` stays as it is. The arguments are those
        of an export, of which `example` is needed where the export had one.
        """
        return refit(path, student, out, example=example, check=check, rollouts=rollouts, compile=compile, pm=pm)

    def load(self, path: str | Path, *, pm: Any = None) -> nn.Module:
        """The export in `path`, to be called as diffusers calls its transformer: `pipe.transformer = load(DIR)`.

        An `ExportError` of a kind that says what does not fit, before any back end is started.
        """
        calls, manifest, family = _open(Path(path), pm or installed())
        return family.transformer(family.runner(calls, manifest.config), calls, manifest.config)

    def flow_map(self, path: str | Path, *, pm: Any = None) -> FlowMap:
        """The same as a `FlowMap`, for `flowmap.sample`; a causal one with its history."""
        calls, manifest, family = _open(Path(path), pm or installed())
        u = family.runner(calls, manifest.config)
        u.guidance = manifest.sampler.get("built_in_guidance")
        return u


def _open(folder: Path, pm: Any) -> tuple[dict[str, Checked], Manifest, Family]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such directory")
    manifest = Manifest.read(folder)
    if not manifest.graphs:
        raise ExportError(f"{folder}: a {manifest.to} export is files for other programs, and nothing to call")
    exporter: Exporter = named(pm, "flowmap_exporters", manifest.to)
    check_machine(manifest)
    check_versions(manifest, exporter, require(manifest.to, exporter))
    manifest.verify(folder)
    families: dict[str, Family] = {"plain": Plain(), **collect(pm, "flowmap_graphs")}
    if manifest.family not in families:
        raise ExportError(f"{folder}: of a {manifest.family!r} network, which no plugin here knows how to run")
    return opened(folder, manifest, exporter), manifest, families[manifest.family]


def is_export(path: Path) -> bool:
    """Whether it holds graphs to call; a pipeline, or what says how it is sampled, is a student's again, manifest or
    not."""
    return (path / MANIFEST).is_file() and not any(
        (path / name).is_file() for name in ("model_index.json", forms.FACTS)
    )


export = Export()
