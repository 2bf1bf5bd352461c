"""Counts the faults that tests try and runs survive, by row of the table in docs/reliability.md.

A test that is marked `@pytest.mark.row("R1")` is one fault; one that tries several says so with
`record_property("tries", n)`. Files of one row alone are marked by their name.
`pytest tests/fault --fault-table FILE` writes the table as Markdown.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

ROWS = {
    "R1": "kill -9 at any instant, then go on",
    "R2": "a crash at every write of a save",
    "R3": "torn or corrupt checkpoints",
    "R4": "disk full, quota, read-only",
    "R5": "NaN or Inf in losses and gradients",
    "R6": "SIGTERM, SIGINT, SIGUSR1",
    "R7": "a rank dies",
    "R8": "an error or a stall on one rank alone",
    "R9": "another number of ranks",
    "R10": "bad recipes",
    "R11": "bad shapes",
    "R12": "bad data shards",
    "R13": "malicious checkpoints and weights",
    "R14": "hostile shards and paths",
    "R15": "plugins that raise or misbehave",
    "R16": "determinism",
    "R17": "saves that are slow or fail late",
    "R18": "two runs in one directory",
    "R19": "other versions",
    "R20": "a killed export",
    "R21": "a long run",
    "R22": "trackers that block or fail",
}
FILES = {
    "test_recipes.py": "R10",
    "test_shapes.py": "R11",
    "test_data.py": "R12",
    "test_plugins.py": "R15",
    "test_determinism.py": "R16",
    "test_locks.py": "R18",
    "test_drift.py": "R19",
    "test_long.py": "R21",
    "test_trackers.py": "R22",
}
_tried: dict[str, int] = defaultdict(int)
_survived: dict[str, int] = defaultdict(int)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, default=None, help="write faults tried and survived to this file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(name): a row of the fault table")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    report = (yield).get_result()
    if report.when == "call" and not report.skipped:
        named = [found[1].upper() for found in re.finditer(r"^test_(r\d+)_", item.name)]
        marked = [mark.args[0] for mark in item.iter_markers("row")] or named or [FILES.get(item.path.name)]
        tries = int(dict(item.user_properties).get("tries", 1))
        for row in filter(None, marked):
            _tried[row] += tries
            _survived[row] += tries if report.passed else 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    file: Path | None = session.config.getoption("--fault-table", None)
    if file is not None:
        file.write_text(table())


def table() -> str:
    lines = ["| row | what happens | tried | survived |", "|---|---|---|---|"]
    for name, what in ROWS.items():
        lines.append(f"| {name} | {what} | {_tried.get(name) or 'not run'} | {_survived.get(name, '–')} |")
    lines.append(f"| | in all | {sum(_tried.values())} | {sum(_survived.values())} |")
    return "\n".join(lines) + "\n"
