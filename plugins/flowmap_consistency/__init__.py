"""The baselines: consistency methods and their relatives, one file a method, by the door that third parties use.

A file holds what its method adds to the core (an objective, a rollout), a factory with the published settings as
defaults, and `stages`, the training at the scale of a recipe that `flowmap distill RECIPE --method NAME` runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmap.hookspecs import hookimpl
from flowmap.lazily import Lazily

from . import heads_file

if TYPE_CHECKING:
    from flowmap import FlowMapSpec
    from flowmap.export.family import Family
    from flowmap.method import Method
    from flowmap.recipe import Recipe, Stage


@hookimpl
def flowmap_methods() -> Mapping[str, Callable[..., Method]]:
    return _lazily(
        {
            "aapt": "aapt:aapt",
            "apt": "apt:apt",
            "apt_initialisation": "apt:initialisation",
            "ayf_emd": "ayf:emd",
            "ayf_lmd": "ayf:lmd",
            "causvid": "causvid:causvid",
            "causvid_ode_init": "causvid:ode_init",
            "consistency": "consistency:consistency",
            "consistency_training": "consistency:training",
            "dmd2": "dmd2:dmd2",
            "esd": "self_distillation:esd",
            "lcm": "consistency:lcm",
            "lsd": "self_distillation:lsd",
            "parallel_decoding": "parallel_decoding:parallel_decoding",
            "phased_dmd": "phased_dmd:phased_dmd",
            "psd": "self_distillation:psd",
            "rcm": "rcm:rcm",
            "rcm_warmup": "rcm:warmup",
            "reward_mfa": "reward:mfa",
            "reward_nft": "reward:nft",
            "reward_on_policy": "reward:on_policy",
            "scm": "scm:scm",
            "scm_training": "scm:training",
            "self_forcing": "self_forcing:self_forcing",
            "self_forcing_ode_init": "self_forcing:ode_init",
            "self_gradient_forcing": "self_gradient_forcing:self_gradient_forcing",
            "self_gradient_forcing_initialisation": "self_gradient_forcing:initialisation",
            "shortcut": "shortcut:shortcut",
            "tvm": "tvm:tvm",
        }
    )


@hookimpl
def flowmap_stages() -> Mapping[str, Callable[[Recipe], Recipe | tuple[Stage, ...]]]:
    return _lazily(
        {
            "aapt": "aapt:stages",
            "apt": "apt:stages",
            "ayf_emd": "ayf:stages",
            "ayf_lmd": "ayf:lmd_stages",
            "causvid": "causvid:stages",
            "consistency": "consistency:stages",
            "consistency_training": "consistency:training_stages",
            "dmd2": "dmd2:stages",
            "esd": "self_distillation:esd_stages",
            "improved_meanflow": "meanflow:improved_stages",
            "lcm": "consistency:lcm_stages",
            "lsd": "self_distillation:lsd_stages",
            "meanflow": "meanflow:stages",
            "parallel_decoding": "parallel_decoding:recipe",
            "phased_dmd": "phased_dmd:stages",
            "psd": "self_distillation:psd_stages",
            "rcm": "rcm:stages",
            "scm": "scm:stages",
            "scm_training": "scm:training_stages",
            "self_forcing": "self_forcing:stages",
            "self_gradient_forcing": "self_gradient_forcing:stages",
            "shortcut": "shortcut:stages",
            "tvm": "tvm:stages",
        }
    )


@hookimpl
def flowmap_graphs() -> Mapping[str, Family]:
    from .decoded_export import DecodedFamily

    return {"decoded": DecodedFamily()}


@hookimpl(tryfirst=True)
def flowmap_resolve_backbone(name: str) -> FlowMapSpec | None:
    """A student's directory with heads: the rest of it is another plugin's."""
    folder = Path(name)
    if not (folder / heads_file.FILE).is_file():
        return None
    from flowmap.plugins import installed

    from .decoded import resolved

    pm = installed()
    others = pm.subset_hook_caller("flowmap_resolve_backbone", [sys.modules[__name__]])
    backbone: FlowMapSpec | None = others(name=str(folder / heads_file.NETWORK))
    return None if backbone is None else resolved(folder, backbone)


def _lazily(where: Mapping[str, str]) -> Lazily[Callable[..., Any]]:
    """Functions by name, each in a file here."""
    return Lazily({name: f"{__name__}.{path}" for name, path in where.items()})
