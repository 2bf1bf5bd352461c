"""R20: a run that is killed while it writes its student leaves none, or the one before; never a half that loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowmap import atomic

from .harness import KILLED, finished, run, status


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    return finished(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.row("R20")
@pytest.mark.parametrize("point, there", [("student.saved", 0), ("publish.before", 0), ("publish.after", 1)])
def test_a_student_is_there_whole_or_not_at_all(point: str, there: bool, tmp_path: Path, uninterrupted: str) -> None:
    out = tmp_path / "run"
    assert run(out, point).codes == (KILLED,)
    assert (out / "student").exists() == there
    assert status(out)["state"] == "running"
    assert finished(out) == uninterrupted
    assert not list(out.glob(".tmp-*"))


POINTS = ("inside", "publish.before", "publish.between", "publish.after")


def replace(out: Path) -> None:
    from flowmap.faults import reach

    with atomic.whole(out / "student") as partial:
        (partial / "a").write_text("new")
        reach("inside")
        (partial / "b").write_text("new")


@pytest.mark.row("R20")
@pytest.mark.parametrize("point", POINTS)
def test_one_that_replaces_another(point: str, tmp_path: Path) -> None:
    student = tmp_path / "run" / "student"
    student.mkdir(parents=True)
    for name in "ab":
        (student / name).write_text("old")
    assert run(tmp_path / "run", point, job=replace).codes == (KILLED,)
    found = {file.read_text() for file in student.iterdir()} if student.exists() else None
    assert found == {"inside": {"old"}, "publish.before": {"old"}, "publish.between": None}.get(point, {"new"})
    assert run(tmp_path / "run", "inside:1:raise", job=replace).code  # fails: what was there is there again
    assert {file.read_text() for file in student.iterdir()} == ({"new"} if point == "publish.after" else {"old"})
    assert run(tmp_path / "run", job=replace).code == 0
    assert {file.read_text() for file in student.iterdir()} == {"new"}
    assert [path.name for path in student.parent.iterdir()] == ["student"]
