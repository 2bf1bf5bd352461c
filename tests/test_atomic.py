"""One writer for all that is read again: a name is there for good, with all of its content, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flowmap import atomic
from flowmap.training.store.lock import Lock
from flowmap.training.store.metrics import Metrics

Seen = list[tuple[str, str]]


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What was synchronised and renamed under `tmp_path`, in order, by names relative to it."""
    events: Seen = []
    synced, replaced, renamed = os.fsync, Path.replace, Path.rename

    def name(path: str | Path) -> str:
        return os.path.relpath(path, tmp_path)

    def fsync(handle: int) -> None:
        synced(handle)
        events.append(("sync", name(os.readlink(f"/proc/self/fd/{handle}"))))

    def move(function: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def moved(self: Path, target: Path) -> Path:
            events.append(("rename", name(target)))
            return function(self, target)

        return moved

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", move(replaced))
    monkeypatch.setattr(Path, "rename", move(renamed))
    return events


def lasts(events: Seen, file: str) -> bool:
    """Whether the content was synchronised before the rename, and the directory after it."""
    at = events.index(("rename", file))
    folder, _, base = file.rpartition("/")
    began = [what for what, path in events[:at] if Path(path).parent == Path(folder or ".") and base in path]
    return began[-1:] == ["sync"] and ("sync", folder or ".") in events[at:]


def test_a_rename_lasts(seen: Seen, tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "a.txt", "ä")
    atomic.write_json(tmp_path / "b.json", {"b": 1})
    atomic.write_bytes(tmp_path / ".c", b"c")
    assert all(lasts(seen, name) for name in ("a.txt", "b.json"))
    assert seen[-3:] == [("sync", ".c.partial"), ("rename", ".c"), ("sync", ".")]
    assert (tmp_path / "a.txt").read_bytes() == "ä".encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c", "a.txt", "b.json"]


def test_a_directory_that_is_made_lasts_with_those_above_it(seen: Seen, tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "runs" / "one" / "a", "")
    assert seen[:2] == [("sync", "runs"), ("sync", ".")]
    seen.clear()
    with Lock(tmp_path / "other" / "run"):
        assert {("sync", "other"), ("sync", ".")} <= {*seen}


def test_a_published_directory_lasts(seen: Seen, tmp_path: Path) -> None:
    with atomic.whole(tmp_path / "student") as made:
        (made / "a").write_text("a")
        seen.clear()
    assert [what for what, _ in seen] == ["sync", "sync", "rename", "sync"]
    assert seen[-2:] == [("rename", "student"), ("sync", ".")]


def test_records_that_are_rewound_last(seen: Seen, tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.add({"stage": 0, "iteration": 3})
    metrics.rewind(0, 1)
    assert lasts(seen, "metrics.jsonl") and metrics.path.read_text() == ""
