"""What README and docs/large.md say of the large recipes is what their committed plans say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text().partition("## What it costs\n")[2].partition("\n## ")[0]
LARGE = (ROOT / "docs" / "large.md").read_text()
PEAK = 0.4 * 989e12  # operations a second of a plan's GPU


def planned(name: str) -> str:
    return (ROOT / "docs" / "plans" / f"{name}.txt").read_text()


def row(plan: str, label: str) -> list[float]:
    """The numbers of the first line of a plan that begins so."""
    line = next(line for line in plan.splitlines() if line.strip().startswith(label))
    return [float(number) for number in re.findall(r"\d+\.\d+|\d+", line.partition(label)[2])]


def rows(text: str, *columns: str) -> list[tuple[str, ...]]:
    """Of tables' lines that begin with a recipe's name, the columns."""
    found = re.findall(r"^\| `(anyflow_\w+)`[^|]*\|" + "".join(f" {column} \\|" for column in columns), text, re.M)
    assert found, "a table that says nothing is compared with nothing"
    return found


COSTS = rows(README, r"[^|]*", r"(\d+) GiB[^|]*", r"(\d+)")
ALONE = rows(LARGE, r"(\d+) GiB", r"[^|]*", r"[^|]*", r"([\d.]+) GiB", r"(\d+), (\d+) s", r"(\d+), (\d+) s", r"[^|]*")


@pytest.mark.parametrize("name, memory, hours", COSTS)
def test_what_the_readme_says_it_costs(name: str, memory: str, hours: str) -> None:
    plan = planned(name)
    assert f"{row(plan, 'FITS:')[0]:.0f}" == memory
    assert f"{row(plan, 'hours')[-1]:.0f}" == hours


@pytest.mark.parametrize("name, card, needs, one, two, waits, waits_two", ALONE)
def test_what_one_gpu_takes(name: str, card: str, needs: str, one: str, two: str, waits: str, waits_two: str) -> None:
    plan = planned(name)
    assert row(plan, "FITS:")[:2] == [float(needs), float(card)]
    seconds, count = row(plan, "seconds an iteration"), [1e15 * n for n in row(plan, "in all")]
    assert [f"{s:.0f}" for s in seconds] == [one, two]
    assert [f"{s - n / PEAK:.0f}" for s, n in zip(seconds, count, strict=True)] == [waits, waits_two]


def test_what_recomputation_saves() -> None:
    (said,) = re.findall(r"^\| `checkpointing=True` \| ([\d., ]+) \| ([\d.]+) \|$", LARGE, re.M)
    plan = planned("anyflow_wan1b")
    assert said[0] == ", ".join(f"{n:.1f}" for n in row(plan, "in all")[:3])
    assert said[1] == f"{row(plan, 'FITS:')[0]:.1f}"
