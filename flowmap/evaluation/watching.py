"""Previews: what teacher and student make of the same noise and prompts in the course of training, and how sound it is.

All ranks make the same calls of the networks, on the same samples; the first decodes, measures and writes. Training's
randomness is not touched: noise is drawn by keys of its own, and what a network draws while it is asked is undone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import define, field, frozen

from .. import atomic, validators
from .._types import Latent
from ..data import Data
from ..doing import tell
from ..experts import fewest
from ..objectives import Networks
from ..recipe import Recipe
from ..training.loop import Trainer, TrainingError
from ..training.ranks.agree import RankError, during, everywhere, rank, ranks
from ..training.run import Run
from ..training.store.health import HEALTH, PREVIEWS
from ..training.store.metrics import Metrics, read
from . import album, card, previews
from .curve import QualityCurve
from .health import Alarms, measured
from .metrics import Samples
from .paired import Paired, undisturbed
from .records import Point
from .subjects import Subjects

NAME = "previews"
"""As it is told how far they are."""
TIMES, APART = 8, 100
"""Previews of a stage, and iterations between them, at least."""


class UnhealthyError(TrainingError):
    """Samples raised an alarm, and the run was asked to stop then."""


def _strings(values: Any) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


def _counts(instance: Previews, attribute: Any, values: tuple[int, ...]) -> None:
    if not values or min(values) < 1 or list(values) != sorted(set(values)):
        raise ValueError(f"Previews.steps = {values}: must increase from at least 1")


@frozen
class Previews:
    """Samples while training goes on, every so many iterations and at the end of every stage. They change no result.

    prompts: none are the evaluation's or, where the recipe has none, what samples of the data show, `count` of them.
    seeds: so many samples of each prompt; two or more show whether they differ. steps: of teacher and student; samples
    of the last number are judged by `alarms`, beside the teacher's of `reference` steps. every: None is eight times a
    stage, and every hundredth iteration at most, so that a short trial has those of the stages' ends alone.
    """

    prompts: tuple[str, ...] = field(default=(), converter=_strings)
    count: int = field(default=2, validator=validators.ge(1))
    seeds: tuple[int, ...] = field(default=(0, 1), converter=tuple, validator=validators.min_len(1))
    steps: tuple[int, ...] = field(default=(1, 4, 16), converter=tuple, validator=_counts)
    reference: int = field(default=32, validator=validators.ge(1))
    every: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    alarms: Alarms = field(default=Alarms(), validator=validators.instance_of(Alarms))

    def due(self, done: int, steps: int) -> bool:
        """After `done` of the `steps` iterations of a stage; not at its end."""
        every = self.every or max(APART, -(-steps // TIMES))
        return done % every == 0 and done < steps


def expect(run: Run, recipe: Recipe, previews: Previews | None, path: Path | None) -> None:
    """Tell a run what it does beside its iterations, for the time that is left."""
    calls, samples = work(previews, recipe, path)
    if calls:
        run.expect(NAME, calls, "sampling", samples)
    if path is not None and isinstance(recipe.evaluation, QualityCurve):
        calls, samples = recipe.evaluation.work
        run.expect("evaluation", calls, "sampling", samples)
    elif path is not None and recipe.evaluation is not None:
        run.expect("evaluation", 1)


def work(previews: Previews | None, recipe: Recipe, path: Path | None) -> tuple[int, int]:
    """About (calls of a network, of so many samples each) in all previews of a run."""
    if previews is None or path is None or not recipe.backbone.has_codec():
        return 0, 0
    times = sum(1 + sum(previews.due(n, stage.steps) for n in range(1, stage.steps)) for stage in recipe.stages)
    calls = times * sum(previews.steps) + 2 * sum({*previews.steps, previews.reference})
    return calls, (len(previews.prompts) or previews.count) * len(previews.seeds)


@frozen
class Preview:
    """What was written: `pictures` by name, in the folder of the run; values: of `evaluation.vitals`, by
    `at N steps/measure`; alarms: sentences by measure; paired: the paired error of the student in most steps."""

    stage: int
    iteration: int
    folder: Path
    pictures: Mapping[str, Path]
    values: Mapping[str, float]
    alarms: Mapping[str, str]
    paired: float | None = None


@define
class Watch:
    """Makes the previews of a run in the directory `path`. say: of what is of interest now; note: of what is kept."""

    previews: Previews
    recipe: Recipe
    data: Data
    device: torch.device
    path: Path
    say: Callable[[str], object]
    note: Callable[[str], object]
    _subjects: Subjects | None = field(default=None, init=False)
    _teacher: dict[Point, Latent] = field(factory=dict, init=False)
    _raised: frozenset[str] = field(default=frozenset(), init=False)
    _off: bool = field(default=False, init=False)
    _calls: int = field(default=0, init=False)  # of a network, so far

    @classmethod
    def of(
        cls,
        wanted: Previews | None,
        recipe: Recipe,
        data: Data,
        device: torch.device,
        path: Path | None,
        say: Callable[[str], object],
        note: Callable[[str], object],
    ) -> Watch | None:
        """None where there is nowhere to write, or nothing to see, since the backbone has no codec."""
        if wanted is None or path is None or not recipe.backbone.has_codec():
            return None
        return cls(wanted, recipe, data, device, path, say, note)

    def resumed(self, stage: int, iteration: int) -> None:
        """Forget what is made again."""
        if rank() == 0:
            Metrics(self.path / HEALTH).rewind(stage, iteration)

    def after(self, trainer: Trainer, iteration: int) -> Preview | None:
        """Of an iteration, if it is due: by the weights that are being trained."""
        if self._off or not self.previews.due(iteration + 1, trainer.stage.steps):
            return None
        return self._make(trainer, iteration + 1, at=iteration)

    def ended(self, trainer: Trainer) -> Preview | None:
        """Of a stage: by its averaged weights, where it averages."""
        return None if self._off else self._make(trainer, trainer.stage.steps, at=trainer.stage.steps)

    def _make(self, trainer: Trainer, done: int, at: int) -> Preview | None:
        during(f"the previews after {done} iterations of {trainer.where}")
        try:
            made = everywhere(lambda: self._made(trainer, done, at))[0]
        except RankError as error:
            self._off, self._teacher = True, {}
            self.say(f"no previews from here on: {error}")
            return None
        for name, text in made.alarms.items():
            if name not in self._raised:
                self.note(f"{trainer.where}, after {done} iterations: {text}")
        self._raised = frozenset(made.alarms)
        if lasting := everywhere(lambda: self._lasting(trainer.number))[0]:
            said = "; ".join(made.alarms[name] for name in lasting)
            asked = f"Alarms.stop = {self.previews.alarms.stop}"
            raise UnhealthyError(f"{trainer.where}, after {done} iterations: {said}: the run stops, as {asked} says")
        return made

    def _made(self, trainer: Trainer, done: int, at: int) -> Preview:
        stage, learnt = trainer.stage, trainer.stage.method.sampler
        if self._subjects is None:
            wanted = self.previews
            given = (wanted.prompts, wanted.count, self.recipe.evaluation, self.recipe.backbone, self.data)
            self._subjects = everywhere(lambda: Subjects.find(*given, self.device) if rank() == 0 else None)[0]
            assert self._subjects is not None
        own = stage.micro or max(1, stage.batch // ranks())
        nets: Networks = {role: u for role, u in trainer.nets.items() if role != "critic"}
        noise = card.history_noise(self.recipe, trainer.number + 1)
        pair = Paired(self.recipe, nets, self._subjects, self.previews.seeds, own, self.device, noise)
        least = fewest(nets[self.recipe.result])
        counts = [n for n in self.previews.steps if n >= least]
        with undisturbed(nets, self.device):
            student = [pair.point("student", n, learnt) for n in counts if "student" in nets]
            teacher: list[Point] = []
            if "teacher" in nets and (not self._teacher or "teacher" in self.recipe.trains):
                teacher = [pair.point("teacher", n, learnt) for n in sorted({*counts, self.previews.reference})]
            total = (
                self._calls
                + sum(p.calls for p in teacher)
                + self._to_come(trainer, done) * sum(p.calls for p in student)
            )
            made = {point: self._told(point, pair, total) for point in teacher + student}
            self._teacher = {p: latents for p, latents in made.items() if p in teacher} or self._teacher
            latents = self._teacher | {point: made[point] for point in student}
        folder = self.path / PREVIEWS / f"stage_{trainer.number}_{done:08d}"
        shown = Preview(trainer.number, done, folder, {}, {}, {})
        shown = shown if rank() > 0 else self._written(shown, latents, pair, at, last=done == stage.steps)
        tell(NAME, self._calls, total)
        return shown

    def _told(self, point: Point, pair: Paired, total: int) -> Latent:
        tell(NAME, self._calls, total)
        made = pair.made(point)
        self._calls += point.calls
        return made

    def _to_come(self, trainer: Trainer, done: int) -> int:
        """How many previews there are from this one on."""
        here, later = trainer.stage.steps, [one.steps for one in self.recipe.stages[trainer.number + 1 :]]
        due = self.previews.due
        return (
            sum(due(n, here) for n in range(done, here))
            + 1
            + sum(1 + sum(due(n, steps) for n in range(1, steps)) for steps in later)
        )

    def _written(
        self, shown: Preview, latents: Mapping[Point, Latent], pair: Paired, at: int, *, last: bool
    ) -> Preview:
        """On the first rank: what was made decoded, measured, and on the disk."""
        codec = self.recipe.backbone.decoder(device=self.device, dtype=torch.float32)
        prompts = pair.prompts
        made = {p: Samples(codec.decode(x.to(self.device)).cpu(), x, prompts, None) for p, x in latents.items()}
        values, alarms = self._judged(made, pair)
        first = slice(0, None, len(pair.seeds))
        videos = {point: one.videos[first] for point, one in made.items()}
        with atomic.whole(shown.folder) as folder:
            previews.write_beside(videos, prompts[first], folder / "grid.png")
            atomic.write_text(folder / "prompts.txt", "".join(f"{prompt}\n" for prompt in prompts[first]))
            moving = last and next(iter(videos.values())).shape[1] > 1
            if moving:
                rate = self.recipe.backbone.frame_rate()
                previews.write_beside(videos, prompts[first], folder / "grid.mp4", rate)
            if last:
                album.write(videos, prompts[first], folder, self.recipe.backbone.frame_rate())
        told = {"stage": shown.stage, "iteration": at, "done": shown.iteration, "time": time.time()}
        record = {**told, "judged": max(self.previews.steps), "values": values, "alarms": alarms}
        record["limits"] = self.previews.alarms.told()
        if error := Metrics(self.path / HEALTH).add(record):
            self.say(f"{HEALTH} cannot be written: {error}")
        flat = {f"at {n} steps/{name}": value for n, of in values.items() for name, value in of.items()}
        pictures = {"teacher and student": shown.folder / "grid.png", "prompts": shown.folder / "prompts.txt"}
        pictures |= {"teacher and student, moving": shown.folder / "grid.mp4"} if moving else {}
        paired = values.get(str(max(self.previews.steps)), {}).get("paired_error")
        return Preview(shown.stage, shown.iteration, shown.folder, pictures, flat, alarms, paired)

    def _judged(
        self, made: Mapping[Point, Samples], pair: Paired
    ) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
        """Every measure by the number of steps, and the alarms of the largest; nothing without student or teacher."""
        fine = next((p for p in made if p.model == "teacher" and p.steps == self.previews.reference), None)
        student = [point for point in made if point.model == "student"]
        if fine is None or not student:
            return {}, {}
        chunks = pair.nets["student"].chunks(made[fine].latents.shape[1])
        values = {str(p.steps): measured(made[p], made[fine], chunks) for p in student}
        return values, self.previews.alarms.raised(values[str(student[-1].steps)])

    def _lasting(self, stage: int) -> list[str]:
        """The alarms that were raised as often in a row as it takes to stop the run, by what is on the disk."""
        often = self.previews.alarms.stop
        if not often or rank() > 0 or not (self.path / HEALTH).is_file():
            return []
        found = [record for record in read(self.path / HEALTH) if record["stage"] == stage][-often:]
        names = [set(record["alarms"]) for record in found]
        return sorted(set.intersection(*names)) if len(names) == often else []
