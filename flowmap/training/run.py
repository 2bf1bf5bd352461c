"""The run directory: what was asked, where it ran, how it goes."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import Factory, define, field
from tqdm import tqdm

from .. import validators
from ..atomic import write_json
from ..recipe import Recipe, RecipeError, describe, digest
from .forecast import Kind
from .interrupt import Preempted
from .pace import Pace, Profile, bound
from .progress import Progress, nonfinite, part
from .ranks.distributed import world
from .store import status
from .store.lock import Lock, me
from .store.metrics import Metrics
from .store.status import Status
from .store.steps import KEY, recorded

PACKAGES = ("flowmap-distill", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy")
DATA = "data.json"
TRACE = Path("profile") / "trace.json"
BETWEEN = 5.0  # seconds, at least, between two writings of status.json that nothing calls for


def primary() -> bool:
    """Whether this process is the one of its job that writes and speaks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0


@define
class Run:
    """recipe.json, env.json, status.json, metrics.jsonl under `path`; None keeps nothing.

    While entered, the directory is locked; what leaves the block is written into the status. Of several ranks, the
    first writes. After the start a disk that takes nothing does not end the training: records wait, and are counted.
    """

    path: Path | None
    every: int = 10  # iterations between records
    profile: int = field(default=0, validator=validators.ge(0))  # iterations that the first process writes a trace of
    speaks: bool = field(factory=primary)
    operations: Sequence[float] = field(default=(), init=False)  # of an iteration on each device, by stage, where known
    _status: Status | None = field(default=None, init=False)
    _written: float = field(default=0.0, init=False)
    _refused: int = field(default=0, init=False)
    _lock: Lock | None = field(default=None, init=False)
    _metrics: Metrics | None = field(default=None, init=False)
    _pace: Pace = field(factory=Pace, init=False)
    _profile: Profile | None = field(default=None, init=False)
    _stages: int = field(default=0, init=False)
    _early: list[str] = field(factory=list, init=False)  # notes from before the start
    _bar: Progress = field(default=Factory(lambda run: Progress(run.speaks), takes_self=True), init=False)
    _guard: Any = field(factory=threading.RLock, init=False)  # notes come from the threads of trackers, too

    def __enter__(self) -> Run:
        if self.speaks and self.path is not None:
            self._lock = Lock(self.path).__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close()
        if self._status is not None and error is not None:
            state = "preempted" if isinstance(error, KeyboardInterrupt) else "failed"
            said = str(error) if isinstance(error, Preempted) else f"{type(error).__name__}: {error}"
            self._update(state=state, reason=said)
        if self._lock is not None:
            self._lock.__exit__(kind, error, trace)

    def start(self, recipe: Recipe) -> None:
        """Say what is to be done; an error where the directory takes nothing."""
        self._stages = len(recipe.stages)
        for number, stage in enumerate(recipe.stages):
            self._bar.forecast.expect(part(number), stage.steps, "training")
        if self._lock is None or self.path is None:
            return
        now = tuple(stage.steps for stage in recipe.stages)
        earlier = {KEY: found} if (found := [one for one in recorded(self.path) if one != now]) else {}
        write_json(self.path / "recipe.json", {"digest": digest(recipe), **describe(recipe), **earlier})
        write_json(self.path / "env.json", environment())
        self._metrics = Metrics(self.path / "metrics.jsonl")
        if self._lock.taken_over is not None:  # said before the status names this process
            self.note(f"took over from a run that was killed ({self._lock.taken_over})")
        self._status = Status(
            "running",
            **me(),
            started=self._lock.started,
            began=time.time(),
            spent=status.spent(self.path),
            command=status.command(),
            stages=len(recipe.stages),
            notes=self._early,
        )
        write_json(self.path / status.FILE, attrs.asdict(self._status))

    def data_is(self, fingerprint: str | None, *, resumed: bool) -> None:
        """Write down what tells the data from others; a `RecipeError` where a resumed run began with others.

        A resumed run that cannot compare them says so, and goes on.
        """
        if self._status is None or self.path is None:
            return
        before = _fingerprint(self.path / DATA) if resumed else fingerprint
        if before is not None and fingerprint is not None and before != fingerprint:
            raise RecipeError(
                f"{self.path}: its data had the fingerprint {before[:12]}, and these have {fingerprint[:12]}: resume "
                "with the data that it began with, or give another directory"
            )
        if resumed and (before is None or fingerprint is None):
            why = f"{DATA} does not say what it began with" if before is None else "its data has no fingerprint now"
            self.note(f"not known whether this is the data that the run began with: {why}")
        elif fingerprint is None:
            self.say("the data has no fingerprint: a resumed run will not notice other data")
        write_json(self.path / DATA, {"fingerprint": before or fingerprint})

    def resumed(self, stage: int, iteration: int, checkpoint: Path | None = None) -> None:
        """Drop the records that a resumed run writes again."""
        if self._metrics is not None:
            self._metrics.rewind(stage, iteration)
        if checkpoint is not None:
            self._update(checkpoint=checkpoint.name)

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint has been published."""
        self._update(checkpoint=checkpoint.name)

    def note(self, text: str) -> None:
        """What went wrong and was survived: into the log and the status."""
        self.say(text)
        with self._guard:
            if self._status is None:
                self._early.append(text)
            else:
                self._status = self._status.noted(text)
                self._update()

    def expect(self, what: str, total: float, kind: Kind = "other", weight: float | None = None) -> None:
        """Work beside the iterations, by the name that `flowmap.doing.tell` gives it; see `Forecast`."""
        self._bar.forecast.expect(what, total, kind, weight)

    def doing(self, what: str, done: int, total: int | None) -> None:
        """Hears what is told of work beside the iterations."""
        self._bar.doing(what, done, total)
        if time.monotonic() - self._written > BETWEEN:
            self._update()

    def previewed(self, paired: float | None) -> None:
        """There were previews; paired: the student's paired error in them."""
        if paired is not None:
            self._bar.paired(paired)

    def evaluating(self) -> None:
        self._bar.forecast.over(*(part(number) for number in range(self._stages)), "previews")
        self._update(state="evaluating")

    def finished(self, sha256: str | None = None, saved: str | None = None) -> None:
        """Done. sha256: of what was trained. saved: in what type, and what that loses."""
        self._bar.forecast.over(*self._bar.forecast.parts)
        self.close()
        if saved is not None:
            self.say(saved)
        self._update(state="finished", reason=None, hash=sha256, saved=saved)

    def say(self, text: str) -> None:
        """What is of no interest once the run is over: into the log alone."""
        if self.speaks:
            tqdm.write(f"flowmap: {text}", file=sys.stderr)

    def stage(self, number: int, name: str, first: int, steps: int, batch: int | None = None) -> None:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        self._pace = Pace(batch, self.operations[number] if self.operations else None, bound(gpu))
        if self.profile and self.path is not None and self.speaks and self._profile is None:
            self._profile = Profile(self.path / TRACE, self.profile)
            self._profile.start()
        for k, done in enumerate(self.operations):
            self._bar.forecast.expect(part(k), self._bar.forecast.parts[part(k)].total, "training", done)
        self._bar.stage(number, max(self._stages, number + 1), name, first, steps)
        self._update(stage=number, method=name, step=first, steps=steps)

    def step(self, number: int, iteration: int, logs: Mapping[str, float] | None) -> None:
        self._bar.step()
        self._pace.step()
        if self._profile is not None:
            self._profile.step()
        with self._guard:
            if self._status is not None:
                self._status = attrs.evolve(self._status, step=iteration + 1)
        if logs is None:
            return
        found = {k: v for k, v in logs.items() if v == v}  # as in metrics.jsonl: a mean of no sample is no number
        bad = {k: v for k, v in found.items() if nonfinite(k)}
        with self._guard:
            if bad and self._status is not None:
                now = {f"{number}/{name}": share for name, share in bad.items()}
                self._status = attrs.evolve(self._status, nonfinite={**self._status.nonfinite, **now})
        self._bar.show(found)
        if self._metrics is not None:
            now = {"stage": number, "iteration": iteration, "time": time.time(), **self._pace.read()}
            error = self._metrics.add({**now, **logs})
            self._told(error, "metrics.jsonl")
        if time.monotonic() - self._written > BETWEEN:
            self._update()

    def stage_over(self) -> None:
        if self._profile is not None:
            self._profile.stop()

    def close(self) -> None:
        self._bar.close()
        self.stage_over()

    def _update(self, **changes: Any) -> None:
        with self._guard:
            if self._status is None or self.path is None:
                return
            left = self._bar.forecast.left()
            times: dict[str, Any] = {"updated": time.time(), "left": left.seconds, "uncounted": left.uncounted}
            self._status = attrs.evolve(self._status, **times, **changes)
            self._written = time.monotonic()
            try:
                write_json(self.path / status.FILE, attrs.asdict(self._status))
            except OSError as error:
                self._told(error, status.FILE)

    def _told(self, error: OSError | None, name: str) -> None:
        """The log is all there is where the disk takes nothing: say it the 1st, 2nd, 4th, 8th time."""
        if error is not None:
            self._refused += 1
            if self._refused & (self._refused - 1) == 0:
                tqdm.write(f"flowmap: {name} cannot be written ({self._refused} times): {error}", file=sys.stderr)


def _fingerprint(file: Path) -> str | None:
    """Of the data that a run began with; None where nothing says it."""
    try:
        found: str | None = json.loads(file.read_text())["fingerprint"]
        return found
    except (OSError, ValueError, KeyError, TypeError):
        return None


def environment() -> dict[str, Any]:
    """What the run ran on."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        "processes": world(),
        "packages": packages,
    }
