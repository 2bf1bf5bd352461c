"""What an export is made of: the network, the kind that it is of, its sizes, and what makes frames of its latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ..model import FlowMap
from ..plugins import collect
from ..plugins import student as spec_of
from . import forms
from .errors import ExportError
from .family import Family
from .graph import Graph
from .plain import Plain
from .spec import Range, ShapeProfile

if TYPE_CHECKING:
    from .._types import Cond, Latent
    from ..model import Codec, FlowMapSpec

Sizes = Mapping[str, int | tuple[int, int, int] | Range]


def loaded(
    student: FlowMap | str | Path, dtype: torch.dtype, device: torch.device, pm: Any, given: object = None
) -> tuple[FlowMap, FlowMapSpec | None, Path | None]:
    """The network, and its spec and directory where it came from one. given: `backbone` of `flowmap.load`."""
    if isinstance(student, FlowMap):
        return student.to(device).eval(), None, None
    folder = forms.located(Path(student))
    spec = spec_of(folder, given, pm)
    return spec.load(folder, device=device, dtype=dtype).eval(), spec, folder


def family_of(
    u: FlowMap, example: tuple[Latent, Cond] | None, pm: Any, facts: Mapping[str, Any] = {}
) -> tuple[str, Family]:
    """Of a network that no plugin knows, by the sizes that were written beside it."""
    if example is not None:
        return "plain", Plain(*example)
    for name, family in collect(pm, "flowmap_graphs").items():
        if family.claims(u):
            return name, family
    if "latent_shape" in facts and "types" in facts:
        like = {name: (facts["conditions"][name], getattr(torch, kind)) for name, kind in facts["types"].items()}
        cond = {name: torch.zeros(1, *size, dtype=kind) for name, (size, kind) in like.items()}
        return "plain", Plain(torch.zeros(1, *facts["latent_shape"]), cond)
    raise ExportError(f"no plugin knows how to export a {type(u).__name__}: give an example, (z, cond), from Python")


def check_sizes(family: Family, u: FlowMap, asked: ShapeProfile, graphs: tuple[Graph, ...]) -> None:
    """Every size that is needed is there, is one that the network has, and is one that it takes."""
    if unknown := [name for name in asked.dims if name not in family.dims]:
        raise ExportError(f"sizes has {unknown[0]!r}: this network has {', '.join(family.dims)}")
    if missing := [name for name in family.dims if name not in asked.dims]:
        asked_for = " ".join(f"{name}=N" for name in missing)
        raise ExportError(
            f"no size is given for {', '.join(missing)}: say sizes (--sizes {asked_for}), which are of latents, not of "
            "pixels"
        )
    for graph in graphs:
        graph.check(family.profile(u, asked))


def known_sizes(family: Family, u: FlowMap, facts: Mapping[str, Any]) -> dict[str, int]:
    """Where none are asked for: the network's own, and those of training."""
    known = dict(family.sizes(u))
    if len(facts.get("latent_shape", ())) == 4:
        known["frames"], _, known["height"], known["width"] = facts["latent_shape"]
    return {name: n for name, n in known.items() if name in family.dims}


def sampler_of(facts: Mapping[str, Any], u: FlowMap, spec: FlowMapSpec | None, shift: float) -> dict[str, Any]:
    """What a sampler must know, for the manifest. shift: of a network that came without a spec."""
    return {
        "shift": facts.get("shift", spec.shift if spec else shift),
        "sampler": facts.get("sampler", "flow_map"),
        "built_in_guidance": u.guidance,
        **({"times": facts["times"]} if facts.get("times") else {}),
    }


def codec_of(spec: Any, device: torch.device) -> Codec | None:
    """To compare frames, where the directory has what makes them."""
    try:
        return cast("Codec", spec.codec(device=device, dtype=torch.float32))
    except (NotImplementedError, OSError, ValueError):
        return None
