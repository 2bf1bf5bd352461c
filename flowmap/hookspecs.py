"""The extension points. A plugin is a module with functions of these names, marked `@hookimpl`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from .export.backend import Exporter
    from .export.family import Family
    from .method import Method
    from .model import FlowMapSpec
    from .published.layout import Layout
    from .recipe import Recipe, Stage
    from .rewards import Reward
    from .training.loop import Trainer
    from .training.tracking import Tracker

hookspec = pluggy.HookspecMarker("flowmap")
hookimpl = pluggy.HookimplMarker("flowmap")


@hookspec
def flowmap_backbones() -> Mapping[str, FlowMapSpec]:
    """Backbones by name. Cheap: a spec must not import its model library."""
    raise NotImplementedError


@hookspec
def flowmap_methods() -> Mapping[str, Callable[..., Method]]:
    """Distillation methods by name: functions of keyword hyper-parameters."""
    raise NotImplementedError


@hookspec
def flowmap_stages() -> Mapping[str, Callable[[Recipe], Recipe | tuple[Stage, ...]]]:
    """Trainings by name: stages that may take the place of a recipe's, at its scale, or, where the student is another
    network, the recipe that has them. `flowmap distill --method`."""
    raise NotImplementedError


@hookspec
def flowmap_exporters() -> Mapping[str, Exporter]:
    """Forms of export by name."""
    raise NotImplementedError


@hookspec
def flowmap_graphs() -> Mapping[str, Family]:
    """How kinds of networks become graphs that can be exported, by name; the name stands in the manifest."""
    raise NotImplementedError


@hookspec
def flowmap_layouts() -> Mapping[str, Layout]:
    """Layouts of published weights by name. `flowmap import --layout NAME`."""
    raise NotImplementedError


@hookspec
def flowmap_trackers() -> Mapping[str, Callable[[Path], Tracker]]:
    """Where else records go, by name: functions of the run's directory. `flowmap distill --track NAME`."""
    raise NotImplementedError


@hookspec
def flowmap_rewards() -> Mapping[str, Reward]:
    """What videos may be rewarded for, by name: `flowmap.plugins.reward`."""
    raise NotImplementedError


@hookspec(firstresult=True)
def flowmap_resolve_backbone(name: str) -> FlowMapSpec | None:
    """Claim a name no plugin registered: a directory, or a hub id. None if it is not yours."""
    raise NotImplementedError


@hookspec
def flowmap_train_start(trainer: Trainer) -> None:
    """Before the first iteration of every stage."""


@hookspec
def flowmap_step_end(trainer: Trainer, iteration: int, logs: Mapping[str, float]) -> None:
    """After every logged iteration. Observers: one that raises three times is switched off, with a warning."""


@hookspec
def flowmap_preview(trainer: Trainer, iteration: int, folder: Path) -> None:
    """After the previews of so many iterations of a stage, on every rank; the first has written them into `folder`."""


@hookspec
def flowmap_train_end(trainer: Trainer) -> None:
    """After the last iteration of every stage."""
