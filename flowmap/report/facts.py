"""What a run directory says, read without torch: of a run in any state, as far as it has come."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from attrs import frozen

from ..training.store import metrics, status
from ..training.store.health import HEALTH


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
        """Seconds an iteration takes, by the records; None where there are too few."""
        own = [record for record in self.records if record["stage"] == stage and "time" in record]
        gaps = [
            (b["time"] - a["time"]) / (b["iteration"] - a["iteration"])
            for a, b in pairwise(own)
            if b["iteration"] > a["iteration"] and b["time"] > a["time"]
        ]
        return statistics.median(gaps) if gaps else None

    def done(self, stage: int) -> int:
        """Iterations of a stage."""
        now = self.status.stage
        if now is None or stage > now:
            return 0
        return int(self.stages[stage]["steps"]) if stage < now else int(self.status.step or 0)

    def costs(self) -> Iterator[tuple[str, int, int, float | None]]:
        """Of each stage: method, iterations done, of how many, seconds an iteration."""
        for number, stage in enumerate(self.stages):
            yield self.method(number), self.done(number), int(stage["steps"]), self.pace(number)

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
