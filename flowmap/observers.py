"""Observers watch training and never change it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pluggy
from attrs import define, field

from .evaluation.watching import Preview, Watch
from .training.loop import Trainer
from .training.tracking import Tracked, Tracker

STRIKES = 3


def tracked(
    makers: Mapping[str, Callable[[Path], Tracker]], run: Path | None, note: Callable[[str], object]
) -> list[Tracked]:
    """The trackers that `makers` make for a run, where it has a directory: at work."""
    return [] if run is None else [Tracked(name, make, run, note) for name, make in makers.items()]


@define
class Observers:
    """Calls hooks one implementation at a time; one that raises three times is not called again.

    While entered, records go to `trackers` too, which training does not wait for. previews: makes them, on all ranks.
    """

    pm: pluggy.PluginManager
    trackers: Sequence[Tracked] = ()
    previews: Watch | None = None
    _failures: dict[tuple[str, str], int] = field(factory=dict, init=False)

    def __enter__(self) -> Observers:
        return self

    def __exit__(self, *error: object) -> None:
        for tracker in self.trackers:
            tracker.close()

    def resumed(self, stage: int, iteration: int) -> None:
        if self.previews is not None:
            self.previews.resumed(stage, iteration)

    def train_start(self, trainer: Trainer) -> None:
        self.call("flowmap_train_start", trainer=trainer)

    def step_end(self, trainer: Trainer, iteration: int, logs: Mapping[str, float]) -> None:
        self.call("flowmap_step_end", trainer=trainer, iteration=iteration, logs=MappingProxyType(dict(logs)))
        for tracker in self.trackers:
            tracker.put(trainer.number, iteration, logs)

    def after(self, trainer: Trainer, iteration: int) -> float | None:
        """Of every iteration, before its checkpoint: a resumed run makes again what was not saved. The paired error, if
        there were previews."""
        return None if self.previews is None else self._seen(trainer, self.previews.after(trainer, iteration))

    def train_end(self, trainer: Trainer) -> float | None:
        """The paired error of the stage's last previews."""
        paired = None if self.previews is None else self._seen(trainer, self.previews.ended(trainer))
        self.call("flowmap_train_end", trainer=trainer)
        return paired

    def judged(self, run: Path, stages: int, iterations: int) -> None:
        """The evaluation is there: trackers get its curve, as of the last stage's end."""
        curve = run / "plots" / "nfe.png"
        if curve.is_file():
            for tracker in self.trackers:
                tracker.put(stages - 1, iterations, {}, {"quality against steps": curve})

    def _seen(self, trainer: Trainer, preview: Preview | None) -> float | None:
        if preview is None:
            return None
        self.call("flowmap_preview", trainer=trainer, iteration=preview.iteration, folder=preview.folder)
        for tracker in self.trackers:
            tracker.put(preview.stage, preview.iteration, preview.values, preview.pictures)
        return preview.paired

    def call(self, hook: str, **arguments: Any) -> None:
        caller: pluggy.HookCaller = getattr(self.pm.hook, hook)
        for impl in caller.get_hookimpls():
            key = (impl.plugin_name, hook)
            if self._failures.get(key, 0) >= STRIKES:
                continue
            try:
                impl.function(**{name: arguments[name] for name in impl.argnames})
            except (Exception, SystemExit) as error:
                self._failures[key] = count = self._failures.get(key, 0) + 1
                end = "; it is switched off" if count >= STRIKES else ""
                at = _at(**arguments)
                warnings.warn(f"{hook} of plugin {impl.plugin_name!r} raised {error!r}{at}{end}", stacklevel=2)


def _at(trainer: Trainer | None = None, iteration: int | None = None, **more: object) -> str:
    where = [] if iteration is None else [f"iteration {iteration}"]
    where += [] if trainer is None else [f"stage {trainer.number}"]
    return f" (in {' of '.join(where)})" if where else ""
