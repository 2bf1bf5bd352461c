"""How long a run will go on, from how fast each part of it has gone so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from attrs import define, field, frozen

Kind = Literal["training", "sampling", "other"]


@define
class Part:
    """`total` units of work, `done` of them. weight: what a unit costs beside those of other parts of its kind.

    A weight of None is not known: then only its own pace says how long the part takes.
    """

    name: str
    total: float
    kind: Kind = "other"
    weight: float | None = None
    done: float = 0.0
    _units: float = field(default=0.0, init=False)
    _seconds: float = field(default=0.0, init=False)
    _first: tuple[float, float] | None = field(default=None, init=False)

    def add(self, units: float, seconds: float) -> None:
        self._units, self._seconds = self._units + units, self._seconds + seconds
        self._first = self._first or (units, seconds)

    @property
    def pace(self) -> float | None:
        """Seconds a unit; without the first report, in which much is done once, as soon as there is another."""
        if self._first is None:
            return None
        units, seconds = self._first
        if self._units > units:
            return (self._seconds - seconds) / (self._units - units)
        return self._seconds / self._units

    @property
    def left(self) -> float:
        return max(0.0, self.total - self.done)


@frozen
class Left:
    """seconds: of all parts but those `uncounted`, of which nothing tells how fast they go."""

    seconds: float
    uncounted: tuple[str, ...] = ()

    def told(self) -> str:
        """`7:05 left, not counting stage 1`; of nothing that is counted `stage 1 left`."""
        if self.uncounted and not self.seconds:
            return f"{', '.join(self.uncounted)} left"
        rest = f", not counting {', '.join(self.uncounted)}" if self.uncounted else ""
        return f"{clock(self.seconds)} left{rest}"


@define
class Forecast:
    """The time between two reports belongs to the part that the second is of."""

    parts: dict[str, Part] = field(factory=dict)
    _last: float = field(factory=lambda: time.monotonic())

    def expect(self, name: str, total: float, kind: Kind = "other", weight: float | None = None) -> None:
        """There is, or will be, such a part; what has been done of it stays."""
        if (part := self.parts.get(name)) is None:
            self.parts[name] = Part(name, total, kind, weight)
        else:
            part.total, part.kind, part.weight = total, kind, part.weight if weight is None else weight

    def at(self, name: str, done: float) -> None:
        """So much of a part is done: if more than at the last report, in the time since."""
        now, part = time.monotonic(), self.parts[name]
        if done > part.done:
            part.add(done - part.done, now - self._last)
        part.done, self._last = done, now

    def resumed(self, name: str, done: float) -> None:
        """So much of it is done already, at a pace that nobody knows."""
        self.parts[name].done, self._last = done, time.monotonic()

    def over(self, *names: str) -> None:
        """These parts are over, whatever was expected of them."""
        for name in names:
            if name in self.parts:
                self.parts[name].done = self.parts[name].total

    def left(self) -> Left:
        seconds, unknown = 0.0, []
        for part in self.parts.values():
            if part.left and (pace := self._pace(part)) is None:
                unknown.append(part.name)
            elif part.left:
                seconds += part.left * (pace or 0.0)
        return Left(seconds, tuple(unknown))

    def _pace(self, part: Part) -> float | None:
        """Its own, or that of the others of its kind, by weight."""
        if part.pace is not None or part.weight is None or part.kind == "other":
            return part.pace
        others = [p for p in self.parts.values() if p.kind == part.kind and p.weight and p.pace is not None]
        found: Sequence[float] = [p.pace / p.weight for p in others]  # type: ignore[operator]
        return part.weight * found[-1] if found else None


def clock(seconds: float) -> str:
    """`4:12`, `1:04:12`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
