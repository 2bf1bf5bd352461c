"""R1: kill -9 at any instant, then go on. The end is that of the run that nothing happened to."""

from __future__ import annotations

from pathlib import Path

import pytest

from .harness import KILLED, SAVES, finished, run

POINTS = {
    "save.before": SAVES,
    "save.shard": SAVES,
    "save.after_data": SAVES,
    "save.after_manifest": SAVES,
    "save.after_rename": SAVES,
    "purge": SAVES,
    "data.next": 24,  # two micro-batches an iteration, of two updates in the last stage
    "teacher.after": 3,
    "student.after": 6,
    "critic.after": 3,
    "ema.after": 9,
}
KILLS = [(point, n) for point, most in POINTS.items() for n in (1, (most + 1) // 2, most)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    return finished(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.row("R1")
@pytest.mark.parametrize("point, n", KILLS, ids=[f"{point}:{n}" for point, n in KILLS])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(
    point: str, n: int, tmp_path: Path, uninterrupted: str
) -> None:
    assert run(tmp_path / "run", f"{point}:{n}").codes == (KILLED,)
    assert finished(tmp_path / "run") == uninterrupted
