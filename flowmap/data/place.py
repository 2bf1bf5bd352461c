"""What a directory for encoded data holds: nothing, other things, what is being made, or all of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from attrs import asdict

from ..atomic import partial, write_bytes
from .claims import claimed, lock
from .format import INDEX, NULL, SHARD, DataError, File, Index, Plan, regular
from .journal import JOB, JOURNAL

OLD = re.compile(r"latents-\d+\.safetensors|texts\.safetensors")  # of the first format
LOG = re.compile(r".*\.(log|out|err)")


def state(path: Path, plan: Plan, replace: bool) -> Literal["finished", "begun", "new"]:
    """What there is of `plan` in a directory; an error where it holds something else, that may not give way."""
    require_directory(path)
    if _found(path, plan, replace):
        return "finished"
    job = path / JOB
    if not job.is_file():
        return "new"
    if job.read_text() == json.dumps(plan.json()):
        return "begun"
    if not replace and not _idle(path):
        raise DataError(f"{path} holds the beginning of other data: {_differs(_json(job), plan.json())}")
    return "new"


def require_directory(path: Path) -> None:
    """An error where encoded data cannot be written into `path`: a file, or a directory of other things."""
    if not path.exists():
        there = next(parent for parent in path.absolute().parents if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise DataError(f"{path} cannot be made: {there} is no directory that can be written to")
        return
    if not path.is_dir():
        raise DataError(f"{path} is a file: must be a directory, or not exist yet")
    if (path / INDEX).is_file() or (path / JOB).is_file():
        return
    if others := sorted(file.name for file in path.iterdir() if not _mine(file.name)):
        raise DataError(f"{path} holds other things, such as {others[0]!r}: give one that is empty or not there yet")


def _mine(name: str) -> bool:
    """Whether a crash, or a log of the command, may have left a file of that name."""
    return (
        name.startswith(".")
        or name == NULL
        or bool(SHARD.fullmatch(name) or OLD.fullmatch(name) or LOG.fullmatch(name))
    )


def _found(path: Path, plan: Plan, replace: bool) -> bool:
    """Whether the data is there already; an error where other data is, that may not be replaced."""
    if not (path / INDEX).is_file():
        return False
    try:
        found = Index.read(path)
    except DataError:
        if replace:
            return False
        raise
    if found.plan.json() == plan.json():
        return True
    if not replace:
        raise DataError(f"{path} holds data of another making: {_differs(found.plan.json(), plan.json())}")
    return False


def _idle(path: Path) -> bool:
    """Whether of what was begun no shard is finished, and nobody is at work: it may give way, for nothing is lost."""
    if any(SHARD.fullmatch(file.name) for file in path.iterdir()):
        return False
    for held in path.glob(".*.lock"):
        if held != lock(path / JOB):
            with claimed(held) as ours:
                if not ours:
                    return False
    return True


def begun(path: Path, plan: Plan, replace: bool) -> bool | None:
    """Whether all is there already; if not, the directory says what is being made. None while another sees to that."""
    with claimed(lock(path / JOB)) as ours:
        if not ours:
            return None
        there = state(path, plan, replace)
        if there == "finished":
            return not _reopened(path, plan)
        if there == "begun":
            return False
        (path / INDEX).unlink(missing_ok=True)  # first: what it names is about to change
        (path / JOURNAL).unlink(missing_ok=True)
        for old in path.glob(".shard-*.partial"):
            old.unlink()
        for old in path.glob("*.safetensors") if replace else ():
            if SHARD.fullmatch(old.name) or OLD.fullmatch(old.name):
                old.unlink()
        write_bytes(path / JOB, json.dumps(plan.json()).encode())
    return False


def require_own(path: Path, plan: Plan) -> None:
    """Before a file is made: that no other command began other data here since."""
    if _json(path / JOB) != plan.json():
        raise DataError(f"{path}: another command has begun other data here; give another directory")


def _reopened(path: Path, plan: Plan) -> bool:
    """Whether files of finished data are gone or of another size; then the journal is there again, without them."""
    index = Index.read(path)
    left_out: dict[str, list[tuple[str, str]]] = {}
    for one in index.skipped:
        left_out.setdefault(one.file, []).append((one.sample, one.why))
    shapes = {name: [list(e.shape), e.dtype] for name, e in {"x": index.latent, **index.cond}.items()}
    kept: list[dict[str, Any]] = []
    for file in (index.null, *index.shards):
        with suppress(DataError):
            regular(path, file)
            skipped = left_out.get(file.file, [])
            line = {"file": asdict(file), "shapes": {} if file.file == NULL else shapes, "skipped": skipped}
            kept.append(line | {"origins": [asdict(one) for one in index.origins.get(file.file, ())]})
    listed = {shard.file for shard in index.shards}
    kept += [nothing(name, skipped) for name, skipped in left_out.items() if name not in listed]
    if len(kept) == len(plan.files):
        return False
    write_bytes(path / JOB, json.dumps(plan.json()).encode())
    write_bytes(path / JOURNAL, "".join(f"{json.dumps(line)}\n" for line in kept).encode())
    (path / INDEX).unlink()
    return True


def _differs(found: Any, wanted: Any, name: str = "") -> str:
    """The first place where two JSON values differ, in words."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*found, *wanted}):
            if found.get(key) != wanted.get(key):
                return _differs(found.get(key), wanted.get(key), f"{name}.{key}" if name else str(key))
    name = name.removeprefix("made_from.")
    return f"{name} = {_short(found)}, now {_short(wanted)}; give another directory, or the settings of before"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def nothing(name: str, skipped: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The journal's line of a shard that has no sample, and so no file."""
    return {"file": asdict(File(name, 0, 0, "")), "shapes": {}, "skipped": [*skipped]}


def tidy(path: Path, plan: Plan) -> None:
    """Clear away what only the making needed, and what killed processes left."""
    for name in (*plan.files, INDEX, JOB):
        lock(path / name).unlink(missing_ok=True)
        partial(path / name).unlink(missing_ok=True)
    (path / JOB).unlink(missing_ok=True)
    (path / JOURNAL).unlink(missing_ok=True)
