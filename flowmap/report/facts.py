"""What a run directory says, read without torch: of a run in any state, as far as it has come."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from attrs import frozen

from ..training.store import metrics, status
from ..training.store.health import HEALTH

SPEED = "samples_per_second"
"""As `training.pace` names it, which loads torch."""


@frozen
class Cost:
    """Of a stage: iterations done, of how many; seconds of one, and of those done, None where no record says it."""

    method: str
    done: int
    steps: int
    pace: float | None
    spent: float | None

    @property
    def left(self) -> int:
        return self.steps - self.done

    @property
    def to_come(self) -> float | None:
        return None if self.pace is None else self.left * self.pace


@frozen
class Facts:
    """records: of metrics.jsonl; health: of health.jsonl; curve: of nfe.json; manifest: of the evaluation."""

    path: Path
    status: status.Status
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    health: Sequence[Mapping[str, Any]]
    curve: Sequence[Mapping[str, Any]]
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, run: Path) -> Facts:
        """A `StatusError` where it is no run directory."""
        found = status.read(run)
        nothing: Any = {}
        return cls(
            run,
            found,
            _json(run / "recipe.json", nothing),
            _json(run / "env.json", nothing),
            _lines(run / "metrics.jsonl"),
            _lines(run / HEALTH),
            _json(run / "evaluation" / "nfe.json", []),
            _json(run / "evaluation" / "manifest.json", nothing),
        )

    @property
    def name(self) -> str:
        return Path(str(self.recipe.get("name") or self.path.resolve().name)).stem

    @property
    def stages(self) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = self.recipe.get("stages", ())
        return found

    def method(self, stage: int) -> str:
        return str(self.stages[stage]["method"]["name"]) if stage < len(self.stages) else f"stage {stage}"

    def before(self, stage: int) -> int:
        """Iterations of the stages before."""
        return sum(int(one["steps"]) for one in self.stages[:stage])

    def pace(self, stage: int) -> float | None:
        """Seconds an iteration takes, the median of the records; None where there are none."""
        gaps = [seconds / iterations for iterations, seconds in self._spans(stage)]
        return statistics.median(gaps) if gaps else None

    def spent(self, stage: int) -> float | None:
        """Seconds of the iterations done: measured up to the last record, at its pace from there on."""
        spans, pace = [*self._spans(stage)], self.pace(stage)
        if pace is None:
            return None
        measured = sum(iterations for iterations, _ in spans)
        return math.fsum(seconds for _, seconds in spans) + max(0, self.done(stage) - measured) * pace

    def _spans(self, stage: int) -> Iterator[tuple[int, float]]:
        """Iterations and seconds from one record to the next, the first from the stage's beginning: by the samples a
        second of the record, in which time between two starts is not; else by the clock."""
        own = [record for record in self.records if record["stage"] == stage]
        batch = self.stages[stage].get("batch") if stage < len(self.stages) else None
        for before, record in zip((None, *own), own, strict=False):
            iterations = record["iteration"] - (before["iteration"] if before else -1)
            if batch and record.get(SPEED):
                yield iterations, iterations * batch / record[SPEED]
            elif before and iterations > 0 and record.get("time", 0.0) > before.get("time", math.inf):
                yield iterations, record["time"] - before["time"]

    def done(self, stage: int) -> int:
        """Iterations of a stage."""
        now = self.status.stage
        if now is None or stage > now:
            return 0
        return int(self.stages[stage]["steps"]) if stage < now else int(self.status.step or 0)

    def costs(self) -> Iterator[Cost]:
        for k, stage in enumerate(self.stages):
            yield Cost(self.method(k), self.done(k), int(stage["steps"]), self.pace(k), self.spent(k))

    @property
    def devices(self) -> int:
        """How many the run is on, a process each."""
        return int(self.environment.get("processes", 1))

    @property
    def device(self) -> str:
        return "GPU" if self.environment.get("cuda") else "CPU"

    @property
    def lived(self) -> float | None:
        """Seconds from the last start to the last sign of life."""
        try:
            began = datetime.strptime(self.status.started, "%Y-%m-%dT%H:%M:%S%z").timestamp()
        except ValueError:
            return None
        return self.status.updated - began if self.status.updated > began else None

    def columns(self) -> dict[str, dict[int, list[tuple[float, float]]]]:
        """Every number of the records by its name and stage, over the iterations of the whole run."""
        found: dict[str, dict[int, list[tuple[float, float]]]] = {}
        for record in self.records:
            at = self.before(record["stage"]) + record["iteration"]
            for name, value in record.items():
                if "/" in name and isinstance(value, int | float):
                    found.setdefault(name, {}).setdefault(record["stage"], []).append((at, float(value)))
        return found


def _json(file: Path, otherwise: Any) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return otherwise


def _lines(file: Path) -> list[dict[str, Any]]:
    return metrics.read(file) if file.is_file() else []
