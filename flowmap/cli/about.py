"""flowmap plugins, check: what is installed, and whether it keeps its promises."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from . import recipes
from .command import Command

HOOKS = {
    "backbones": "backbones",
    "methods": "methods, for the stages of a recipe",
    "stages": "methods for a whole recipe, for distill --method",
    "exporters": "exporters",
    "layouts": "layouts of published weights, for import",
    "rewards": "rewards, for stages after distillation",
    "trackers": "trackers, for distill --track",
}


def plugins(options: Namespace) -> None:
    if options.needs:
        return _needs()
    from ..plugins import installed, origins

    for hook, heading in HOOKS.items():
        found = origins(installed(), f"flowmap_{hook}")
        width = max(map(len, found), default=0)
        print(heading)
        for name, plugin in found.items():
            print(f"  {name:{width}}  from {plugin}")
        if not found:
            print("  none")
    from ..export.listed import names

    forms = names(installed())
    width = max(map(len, forms), default=0)
    print("forms for other programs")
    for name, backbones in forms.items():
        print(f"  {name:{width}}  of {', '.join(backbones)}")
    there = recipes.known()
    width = max(map(len, there), default=0)
    print("recipes, for distill")
    for name, file in there.items():
        print(f"  {name:{width}}  {recipes.about(file)}".rstrip())


def _needs() -> None:
    from ..plugins import collect, installed
    from .needs import needs

    methods = collect(installed(), "flowmap_methods")
    width = max(map(len, methods), default=0)
    for name, make in methods.items():
        print(f"{name:{width}}  {needs(make)}")


def check(options: Namespace) -> int:
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # casting tiny networks, the checks do what it warns of
    from ..plugins import backbone
    from ..testing import check_backbone

    found = check_backbone(backbone(options.backbone))
    print(found)
    return 1 if any(each.outcome == "failed" for each in found) else 0


def _listing(parser: ArgumentParser) -> None:
    told = "methods alone, each with what it trains, which networks it calls, its derivative, and what it takes of data"
    parser.add_argument("--needs", action="store_true", help=told)


def _backbone(parser: ArgumentParser) -> None:
    parser.add_argument("backbone", metavar="BACKBONE", help="a name from `flowmap plugins`, a directory, or a hub id")


PLUGINS = Command(
    "plugins",
    "list recipes, backbones, methods, exporters, forms, layouts and trackers",
    "flowmap plugins",
    plugins,
    _listing,
)
CHECK = Command("check", "run the conformance kit on a backbone", "flowmap check wan21", check, _backbone)
