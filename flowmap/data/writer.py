"""Encoded data, written shard by shard by any number of processes: a kill costs the shard that was being made.

    .job.json         what is being made; another job is refused
    .journal.jsonl    a line a finished file; what it does not name is made again
    .NAME.partial     a file in the making; .NAME.lock is held by the process that makes it

Shards that another process holds are left to it; when nothing else is left to do, each process waits for the rest, and
takes over what a killed one held. Whoever sees the last file finished writes the index: the same bytes whoever it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from attrs import asdict, evolve, frozen
from safetensors.torch import save
from torch import Tensor

from .._types import Cond, Latent
from .files import claimed, lock, partial, publish
from .format import HEAD, INDEX, NULL, SHARD, DataError, Entry, File, Index, Plan, regular, sample_hash
from .journal import JOB, JOURNAL, Journal
from .shards import LatentShards

OLD = re.compile(r"latents-\d+\.safetensors|texts\.safetensors")  # of the first format
POLL_SECONDS = 0.5


@frozen(eq=False)
class Made:
    """n samples: x [n, ...]; prompts, one each; cond: of the distinct prompts in the order in which they come."""

    x: Latent
    prompts: Sequence[str]
    cond: Cond


class Maker(Protocol):
    """Makes samples; a function of their numbers alone."""

    def null(self) -> Cond:
        """Entries [1, ...]."""

    def samples(self, first: int, last: int) -> Made:
        """Samples first .. last - 1."""


@frozen
class Progress:
    """done, of `total`, counted in shards; made: by this process."""

    done: int
    total: int
    made: int


def write(
    path: Path,
    plan: Plan,
    maker: Callable[[], Maker],
    *,
    part: tuple[int, int] = (1, 1),
    replace: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> LatentShards | None:
    """Make what `plan` says in the directory `path`, or what is left of it; None where other parts are to follow.

    maker: called when there is something to make. part: (i, n) makes every n-th shard, the i-th first, and waits for
    none. replace: whether encoded data of another plan may give way; else it is an error.
    """
    path.mkdir(parents=True, exist_ok=True)
    while (finished := _begun(path, plan, replace)) is None:
        time.sleep(POLL_SECONDS / 10)
    if finished:
        _tidy(path, plan)
        return LatentShards.open(path)
    journal, made, kept = Journal(path, plan), 0, None
    todo = plan.files[part[0] - 1 :: part[1]]
    while todo:
        before = made
        journal.refresh()
        for name in (name for name in todo if name not in journal.done):
            with claimed(lock(path / name)) as ours:
                journal.refresh()
                if ours and name not in journal.done and not (path / INDEX).is_file():  # with it the journal goes
                    kept = kept or maker()
                    journal.add(_make(path, name, plan, kept))
                    made += 1
                    progress(Progress(len(journal.done), len(plan.files), made))
        journal.refresh()
        if (path / INDEX).is_file():  # another process saw the end
            break
        todo = [name for name in todo if name not in journal.done]
        if part != (1, 1):
            todo = [] if made == before else todo
        elif todo and made == before:
            time.sleep(POLL_SECONDS)
    while not (path / INDEX).is_file():
        if len(journal.done) < len(plan.files):
            return None
        with claimed(lock(path / INDEX)) as ours:
            if ours and not (path / INDEX).is_file():
                publish(path / INDEX, json.dumps(journal.index().json()).encode())
    _tidy(path, plan)
    return LatentShards.open(path)


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


def _begun(path: Path, plan: Plan, replace: bool) -> bool | None:
    """Whether all is there already; if not, the directory says what is being made. None while another sees to that."""
    job, text = path / JOB, json.dumps(plan.json())
    with claimed(lock(path / JOB)) as ours:
        if not ours:
            return None
        if _found(path, plan, replace):
            return not _reopened(path, plan)
        if job.is_file() and job.read_text() == text:
            return False
        if job.is_file() and not replace:
            raise DataError(f"{path} holds the beginning of other data: {_differs(_json(job), plan.json())}")
        (path / INDEX).unlink(missing_ok=True)  # first: what it names is about to change
        (path / JOURNAL).unlink(missing_ok=True)
        for old in path.glob("*.safetensors") if replace else ():
            if SHARD.fullmatch(old.name) or OLD.fullmatch(old.name):
                old.unlink()
        publish(job, text.encode())
    return False


def _reopened(path: Path, plan: Plan) -> bool:
    """Whether files of finished data are gone or of another size; then the journal is there again, without them."""
    index, kept = Index.read(path), []
    shapes = {name: [list(e.shape), e.dtype] for name, e in {"x": index.latent, **index.cond}.items()}
    for file in (index.null, *index.shards):
        with suppress(DataError):
            regular(path, file)
            kept.append({"file": asdict(file), "shapes": {} if file.file == NULL else shapes})
    if len(kept) == len(plan.files):
        return False
    publish(path / JOB, json.dumps(plan.json()).encode())
    publish(path / JOURNAL, "".join(f"{json.dumps(line)}\n" for line in kept).encode())
    (path / INDEX).unlink()
    return True


def _differs(found: Any, wanted: Any, name: str = "") -> str:
    """The first place where two JSON values differ, in words."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*found, *wanted}):
            if found.get(key) != wanted.get(key):
                return _differs(found.get(key), wanted.get(key), f"{name}.{key}" if name else str(key))
    return f"{name} = {_short(found)}, now {_short(wanted)}; give another directory, or the settings of before"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:
        return {}


def _make(path: Path, name: str, plan: Plan, maker: Maker) -> dict[str, Any]:
    """Make a file, write it, and give it its name; its line in the journal."""
    if name == NULL:
        content = save({k: v.detach().cpu().contiguous() for k, v in maker.null().items()})
        written, shapes = File(name, 1, len(content), hashlib.sha256(content).hexdigest()), dict[str, Any]()
    else:
        first = int(name[len("shard-") : -len(".safetensors")]) * plan.shard
        made = maker.samples(first, min(first + plan.shard, plan.count))
        content, head = packed(made)
        written = File(name, len(made.x), len(content), hashlib.sha256(head.encode()).hexdigest())
        shapes = {k: [list(v.shape[1:]), Entry.of(v).dtype] for k, v in {"x": made.x, **made.cond}.items()}
    publish(path / name, content)
    return {"file": asdict(written), "shapes": shapes}


def packed(made: Made) -> tuple[bytes, str]:
    """A shard's bytes, and its head."""
    prompts = [*dict.fromkeys(made.prompts)]
    rows = [prompts.index(prompt) for prompt in made.prompts]
    x = made.x.detach().cpu().contiguous()
    if len(x) != len(rows) or any(len(v) != len(prompts) for v in made.cond.values()):
        sizes = {"x": len(x), "prompts": len(rows), **{k: len(v) for k, v in made.cond.items()}}
        raise ValueError(f"a shard needs as many latents as prompts, and a text for each of {len(prompts)}: {sizes}")
    texts = {name: [_kept(row) for row in value.detach().cpu()] for name, value in sorted(made.cond.items())}
    hashes = [sample_hash(x[i], prompts[row], [(k, v[row]) for k, v in texts.items()]) for i, row in enumerate(rows)]
    ends = {
        name: torch.tensor([len(v) for v in values]).cumsum(0).tolist()
        for name, values in texts.items()
        if values[0].ndim
    }
    head = json.dumps({"prompts": prompts, "samples": [*zip(rows, hashes, strict=True)], "ends": ends})
    joined = {f"cond/{k}": torch.cat(v) if v[0].ndim else torch.stack(v) for k, v in texts.items()}
    return save({"x": x, **joined}, {HEAD: head}), head


def _kept(value: Tensor) -> Tensor:
    """[L, ...] without the zeros at its end; a number as it is."""
    if not value.ndim:
        return value
    used = value.flatten(1).any(1).nonzero() if value.ndim > 1 else value.nonzero()
    return value[: int(used[-1]) + 1 if len(used) else 0]


def _tidy(path: Path, plan: Plan) -> None:
    """Clear away what only the making needed, and what killed processes left."""
    for name in (*plan.files, INDEX, JOB):
        lock(path / name).unlink(missing_ok=True)
        partial(path / name).unlink(missing_ok=True)
    (path / JOB).unlink(missing_ok=True)
    (path / JOURNAL).unlink(missing_ok=True)


def stored(made: Made, latents: torch.dtype, texts: torch.dtype) -> Made:
    """In the types of the disk."""
    cond = {k: v.to(texts) if v.is_floating_point() else v for k, v in made.cond.items()}
    return evolve(made, x=made.x.to(latents), cond=cond)
