"""metrics.jsonl: a line a record, complete up to the last whole line whatever happened to the process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import define, field

from ...atomic import write_text

HELD = 10_000  # records that wait for a disk that takes none


@define
class Metrics:
    """Appends to `path`; what the disk refuses is kept in memory, and written with a later record."""

    path: Path
    _waiting: list[str] = field(factory=list, init=False)

    def rewind(self, stage: int, iteration: int) -> None:
        """Drop the records that a resumed run writes again, and a line that was torn by a kill."""
        if not self.path.is_file():
            return
        kept = [r for r in read(self.path) if (r["stage"], r["iteration"]) < (stage, iteration)]
        write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))

    def add(self, record: Mapping[str, Any]) -> OSError | None:
        """Append a record, without the values that are not numbers; the error, if it has to wait."""
        line = json.dumps({name: value for name, value in record.items() if value == value}) + "\n"
        self._waiting = [*self._waiting, line][-HELD:]
        try:
            _append(self.path, "".join(self._waiting).encode())
        except OSError as error:
            return error
        self._waiting.clear()
        return None


def _append(path: Path, data: bytes) -> None:
    """All of it or, with an error, nothing: half a line would spoil the next one."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise


def read(path: Path) -> list[dict[str, Any]]:
    """The whole records: a last line without its end was torn by a kill."""
    records = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:  # a run that was killed while it wrote, and resumed by an older flowmap
            continue
        if isinstance(record, dict) and {"stage", "iteration"} <= record.keys():
            records.append(record)
    return records
