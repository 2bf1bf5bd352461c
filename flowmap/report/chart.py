"""Line charts as SVG: text and shapes that a browser draws at any size, light or dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from attrs import frozen

WIDTH, HEIGHT = 360.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 8.0, 26.0
RANGE = 8.0
"""Values that differ by more than this factor are drawn on a logarithmic axis."""
FLOOR = HEIGHT - BOTTOM
NEAR, WIDE = 20.0, 44.0
"""Units between two numbers of an axis, at least."""
DOTS = 40
"""Lines of more points are drawn without dots."""


@frozen
class Line:
    """points: (x, y). style: a class of the page's style sheet. spread: half the height of a band around each y."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "a"
    spread: Sequence[float] = ()


@frozen
class Scale:
    """From a value to a place: `way` is monotone, None as it is; low and high are the ends. whole: numbers of
    things, without fractions."""

    low: float
    high: float
    start: float
    end: float
    way: Callable[[float], float] | None = None
    whole: bool = False

    def at(self, value: float) -> float:
        low, high, here = (v if self.way is None else self.way(v) for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (here - low) / (high - low)

    def ticks(self, near: float) -> list[float]:
        """Round numbers, none closer to another than `near`."""
        return self._even(near) if self.way is None else self._round(near)

    def _even(self, near: float) -> list[float]:
        least = near * (self.high - self.low) / abs(self.end - self.start)
        least = max(1.0, least) if self.whole else least
        power = 10.0 ** math.floor(math.log10(least))
        size = next(m * power for m in (1, 2, 5, 10) if m * power >= least)
        return [n * size for n in range(math.ceil(self.low / size), math.floor(self.high / size) + 1)]

    def _round(self, near: float) -> list[float]:
        """0, powers of ten, then 5 and 2 times these, the large ones first."""
        top = math.floor(math.log10(max(abs(self.low), abs(self.high))))
        sizes = [m * 10.0**k for m in (1, 5, 2) for k in range(top, top - 7, -1)]
        found: list[float] = []
        for value in (0.0, *(sign * size for size in sizes for sign in (1, -1))):
            inside = self.low <= value <= self.high
            if inside and all(abs(self.at(value) - self.at(other)) >= near for other in found):
                found.append(value)
        return sorted(found)


def chart(
    lines: Sequence[Line],
    *,
    x: str,
    log_x: bool = False,
    whole: bool = False,
    limits: tuple[float, float] = (-math.inf, math.inf),
    level: tuple[str, float] | None = None,
    marks: Sequence[float] = (),
) -> str:
    """whole: x counts, and has no fractions. limits: shaded outside. level: a named horizontal line. marks: vertical
    lines."""
    xs = [px for line in lines for px, _ in line.points]
    ys = [v for line in lines for v in _reach(line)] + ([level[1]] if level else [])
    if not xs:
        return ""
    across = Scale(*_apart(min(xs), max(xs)), LEFT, WIDTH - RIGHT, math.log if log_x else None, whole)
    up = _vertical(ys, limits)
    parts = [*_grid(across, up, sorted({*xs}) if log_x else across.ticks(WIDE)), *_limits(up, limits)]
    parts += [_rule("mark", across.at(m), across.at(m), TOP, FLOOR) for m in marks if across.low < m < across.high]
    if level:
        parts.append(
            _rule("level", LEFT, WIDTH - RIGHT, up.at(level[1]), up.at(level[1]), f"{level[0]}: {level[1]:.3g}")
        )
    for line in lines:
        parts += _drawn(line, across, up, x)
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 2, x))
    return f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img">{"".join(parts)}</svg>'


def _rule(style: str, x1: float, x2: float, y1: float, y2: float, title: str = "") -> str:
    told = f"<title>{escape(title)}</title>" if title else ""
    return f'<line class="{style}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}">{told}</line>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _reach(line: Line) -> list[float]:
    spread = line.spread or (0.0,) * len(line.points)
    return [v for (_, y), s in zip(line.points, spread, strict=True) for v in (y - s, y, y + s)]


def _vertical(ys: Sequence[float], limits: tuple[float, float]) -> Scale:
    """With its limits, if it has any. Else logarithmic for values above 0 that differ much; where some are at 0 or
    below, logarithmic away from 0."""
    low, high = min(ys), max(ys)
    shown = [value for value in limits if math.isfinite(value)]
    if not shown and low > 0 and high > RANGE * low:
        return Scale(low / 1.1, high * 1.1, FLOOR, TOP, math.log)
    values = sorted(abs(y) for y in ys)
    middle = values[len(values) // 2]
    if not shown and low <= 0 and middle > 0 and high > RANGE * middle:
        return Scale(low, high, FLOOR, TOP, lambda y: math.asinh(y / middle))
    low, high = _apart(min([low, *shown]), max([high, *shown]))
    edge = 0.06 * (high - low)
    return Scale(low - edge, high + edge, FLOOR, TOP)


def _apart(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5 * abs(low or 1.0), high + 0.5 * abs(high or 1.0))


def _grid(across: Scale, up: Scale, ticks: Sequence[float]) -> list[str]:
    found = []
    for value in up.ticks(NEAR):
        found.append(_rule("grid", LEFT, WIDTH - RIGHT, up.at(value), up.at(value)))
        found.append(_text(LEFT - 5, up.at(value) + 3.5, _short(value), "end"))
    last = -math.inf
    for value in ticks:
        if across.at(value) - last >= NEAR:
            last = across.at(value)
            found.append(_text(last, FLOOR + 12, _short(value)))
    return found


def _limits(up: Scale, limits: tuple[float, float]) -> list[str]:
    found = []
    for value, edge in ((limits[0], FLOOR), (limits[1], TOP)):
        if math.isfinite(value) and up.low < value < up.high:
            top, bottom = sorted((up.at(value), edge))
            size = f'x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{bottom - top:.1f}"'
            found.append(f'<rect class="alarm" {size}/>')
    return found


def _drawn(line: Line, across: Scale, up: Scale, x: str) -> list[str]:
    at = [(across.at(px), up.at(py)) for px, py in line.points]
    found = []
    if line.spread:
        above = [(a, up.at(py + s)) for (a, _), (_, py), s in zip(at, line.points, line.spread, strict=True)]
        below = [(a, up.at(py - s)) for (a, _), (_, py), s in zip(at, line.points, line.spread, strict=True)]
        found.append(f'<polygon class="band {line.style}" points="{_points([*above, *below[::-1]])}"/>')
    found.append(f'<polyline class="line {line.style}" points="{_points(at)}"/>')
    for (a, b), (px, py) in zip(at, line.points, strict=True) if len(at) <= DOTS else ():
        told = escape(f"{line.name}, {px:g} {x.removesuffix('s') if px == 1 else x}: {py:.3g}")
        found.append(f'<circle class="dot {line.style}" cx="{a:.1f}" cy="{b:.1f}" r="3"><title>{told}</title></circle>')
    return found


def _points(at: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in at)


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:.3g}"
