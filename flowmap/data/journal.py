"""What is finished of data that is being written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, field

from .format import NULL, DataError, Entry, File, Index, Origin, Plan, Skipped, told

JOB, JOURNAL = ".job.json", ".journal.jsonl"


@define
class Journal:
    """What is finished: read on from where it was read before, since others append to it too."""

    path: Path
    plan: Plan
    done: dict[str, File] = field(factory=dict, init=False)
    shapes: dict[str, Any] | None = field(default=None, init=False)
    skipped: dict[str, tuple[Skipped, ...]] = field(factory=dict, init=False)
    origins: dict[str, tuple[Origin, ...]] = field(factory=dict, init=False)
    _at: int = field(default=0, init=False)
    _files: frozenset[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._files = frozenset(self.plan.files)

    def refresh(self) -> None:
        whole = b""
        with suppress(FileNotFoundError), (self.path / JOURNAL).open("rb") as file:
            file.seek(self._at)
            new = file.read()
            whole = new[: new.rfind(b"\n") + 1]  # a line may be in the writing, or was when its process died
            self._at += len(whole)
        for line in whole.splitlines():
            try:
                read = json.loads(line)
            except ValueError:
                continue
            self._take(read)

    def add(self, line: Mapping[str, Any]) -> None:
        """A line begins with a line break: before it may stand half of one that was cut short."""
        with (self.path / JOURNAL).open("ab") as file:
            file.write(b"\n" + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(line)

    def _take(self, line: Mapping[str, Any]) -> None:
        file = File(**line["file"])
        found = self.path / file.file
        if file.file not in self._files:
            return
        if file.count and (not found.is_file() or found.stat().st_size != file.bytes):
            return
        self.skipped[file.file] = tuple(Skipped(file.file, *one) for one in line.get("skipped", ()))
        if of := line.get("origins"):
            self.origins[file.file] = tuple(Origin(**one) for one in of)
        if file.count and file.file != NULL:
            self.shapes = self.shapes or line["shapes"]
            if line["shapes"] != self.shapes:
                raise DataError(f"{found} has {line['shapes']}: the shards before have {self.shapes}")
        self.done[file.file] = file

    def index(self) -> Index:
        skipped = tuple(one for name in self.plan.files for one in self.skipped[name])
        if self.shapes is None:
            raise DataError(
                f"{self.path}: none of the {self.plan.count} can be made:{told([(s.sample, s.why) for s in skipped])}"
            )
        entries = {name: Entry(tuple(shape), dtype) for name, (shape, dtype) in self.shapes.items()}
        null, *shards = (self.done[name] for name in self.plan.files)
        origins = {
            name: self.origins[name] for name in self.plan.files if name in self.origins
        }  # by name: always the same
        return Index(entries.pop("x"), entries, null, tuple(s for s in shards if s.count), self.plan, skipped, origins)


def unfinished(path: Path) -> str | None:
    """What is to be said of a directory that is not finished; None where nothing was begun."""
    try:
        found = json.loads((path / JOB).read_text())
        plan = Plan(found["count"], found["shard"], found["made_from"], found["encoders"])
        journal = Journal(path, plan)
        journal.refresh()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    done, total = len(journal.done.keys() - {NULL}), len(plan.files) - 1
    return f"{path} is not finished: {done} of {total} shards are there; the command that began it goes on"
