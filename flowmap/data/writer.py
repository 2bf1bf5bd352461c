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
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from attrs import asdict, evolve, field, frozen
from safetensors.torch import save
from torch import Tensor

from .._types import Cond, Latent
from ..atomic import folder, write_bytes
from ..doing import part_of
from .claims import claimed, lock
from .format import HEAD, INDEX, NULL, OWN, BadSamplesError, Entry, File, Origin, Plan, sample_hash
from .journal import Journal
from .place import begun, nothing, require_own, state, tidy
from .shards import LatentShards

POLL_SECONDS = 0.5


@frozen(eq=False)
class Made:
    """n samples: x [n, ...]; prompts, one each; cond: of the distinct prompts in the order in which they come.

    skipped: the samples that could not be made, each by name and with why. With no others x and cond are not looked at.
    own: conditions of each sample's own, such as its first frame, every entry [n, ...]. origins: of each sample, where
    it is from; none, where they are from nowhere.
    """

    x: Latent
    prompts: Sequence[str]
    cond: Cond
    skipped: Sequence[tuple[str, str]] = ()
    own: Cond = field(factory=dict)
    origins: Sequence[Origin] = ()


class Maker(Protocol):
    """Makes samples; a function of their numbers alone."""

    def null(self) -> Cond:
        """Entries [1, ...]."""

    def samples(self, first: int, last: int) -> Made:
        """Samples first .. last - 1; a `BadSamplesError` with all among them that cannot be made, if there are some.

        It may `flowmap.doing.tell` how many of them it is through with; they are counted with those of other files.
        """


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

    maker: called when there is something to make, before anything is written: what it refuses leaves no trace. part:
    (i, n) makes every n-th shard, the i-th first, and waits for none. replace: whether encoded data of another plan may
    give way; else it is an error. Samples that cannot be made do not keep the other shards from being made: a
    `BadSamplesError` names them all at the end.
    """
    kept = maker() if state(path, plan, replace) == "new" else None
    folder(path)
    while (finished := begun(path, plan, replace)) is None:
        time.sleep(POLL_SECONDS / 10)
    if finished:
        tidy(path, plan)
        return LatentShards.open(path)
    journal, made = Journal(path, plan), 0
    bad: dict[str, tuple[tuple[str, str], ...]] = {}  # by shard: tried here, and not again
    todo = plan.files[part[0] - 1 :: part[1]]
    own = frozenset(todo)
    while todo:
        before = made
        journal.refresh()
        for name in (name for name in todo if name not in journal.done):
            with claimed(lock(path / name)) as ours:
                journal.refresh()
                if ours and name not in journal.done and not (path / INDEX).is_file():  # with it the journal goes
                    require_own(path, plan)
                    kept = kept or maker()
                    before_it = plan.counted(own & (journal.done.keys() | bad.keys()))
                    try:
                        with part_of(before_it, plan.counted(own)):
                            line = _make(path, name, plan, kept)
                    except BadSamplesError as error:
                        bad[name] = error.samples
                        continue
                    journal.add(line)
                    made += 1
                    progress(Progress(len(journal.done), len(plan.files), made))
        journal.refresh()
        if (path / INDEX).is_file():  # another process saw the end
            break
        todo = [name for name in todo if name not in journal.done and name not in bad]
        if part != (1, 1):
            todo = [] if made == before else todo
        elif todo and made == before:
            time.sleep(POLL_SECONDS)
    while not (path / INDEX).is_file():
        if failed := [one for name, samples in bad.items() if name not in journal.done for one in samples]:
            raise BadSamplesError(failed)
        if len(journal.done) < len(plan.files):
            return None
        with claimed(lock(path / INDEX)) as ours:
            if ours and not (path / INDEX).is_file():
                write_bytes(path / INDEX, json.dumps(journal.index().json()).encode())
    tidy(path, plan)
    return LatentShards.open(path)


def _make(path: Path, name: str, plan: Plan, maker: Maker) -> dict[str, Any]:
    """Make a file, write it, and give it its name; its line in the journal."""
    if name == NULL:
        origins: Sequence[Origin] = ()
        content = save({k: v.detach().cpu().contiguous() for k, v in maker.null().items()})
        written, shapes, skipped = (
            File(name, 1, len(content), hashlib.sha256(content).hexdigest()),
            dict[str, Any](),
            [*()],
        )
    else:
        numbers = plan.samples(name)
        made = maker.samples(numbers.start, numbers.stop)
        skipped, origins = [*made.skipped], made.origins
        if not made.prompts:
            return nothing(name, skipped)
        content, head = packed(made)
        written = File(name, len(made.x), len(content), hashlib.sha256(head.encode()).hexdigest())
        shapes = {k: [list(v.shape[1:]), Entry.of(v).dtype] for k, v in {"x": made.x, **made.cond, **made.own}.items()}
    write_bytes(path / name, content)
    line = {"file": asdict(written), "shapes": shapes, "skipped": skipped}
    return line | ({"origins": [asdict(one) for one in origins]} if origins else {})


def packed(made: Made) -> tuple[bytes, str]:
    """A shard's bytes, and its head."""
    prompts = [*dict.fromkeys(made.prompts)]
    rows = [prompts.index(prompt) for prompt in made.prompts]
    x = made.x.detach().cpu().contiguous()
    if len(x) != len(rows) or any(len(v) != len(prompts) for v in made.cond.values()):
        sizes = {"x": len(x), "prompts": len(rows), **{k: len(v) for k, v in made.cond.items()}}
        raise ValueError(f"a shard needs as many latents as prompts, and a text for each of {len(prompts)}: {sizes}")
    own = {name: value.detach().cpu().contiguous() for name, value in made.own.items()}
    if other := [name for name, value in own.items() if name in made.cond or len(value) != len(x)]:
        raise ValueError(f"{other[0]} must be of every sample, or of every prompt")
    texts = {name: [_kept(row) for row in value.detach().cpu()] for name, value in sorted(made.cond.items())}
    hashes = [
        sample_hash(x[i], prompts[row], sorted({**{k: v[row] for k, v in texts.items()}, **_row(own, i)}.items()))
        for i, row in enumerate(rows)
    ]
    ends = {
        name: torch.tensor([len(v) for v in values]).cumsum(0).tolist()
        for name, values in texts.items()
        if values[0].ndim
    }
    head = json.dumps({"prompts": prompts, "samples": [*zip(rows, hashes, strict=True)], "ends": ends})
    joined = {f"cond/{k}": torch.cat(v) if v[0].ndim else torch.stack(v) for k, v in texts.items()}
    return save({"x": x, **joined, **{f"{OWN}{k}": v for k, v in own.items()}}, {HEAD: head}), head


def _row(values: Cond, i: int) -> dict[str, Tensor]:
    return {name: value[i] for name, value in values.items()}


def _kept(value: Tensor) -> Tensor:
    """[L, ...] without the zeros at its end; a number as it is."""
    if not value.ndim:
        return value
    used = value.flatten(1).any(1).nonzero() if value.ndim > 1 else value.nonzero()
    return value[: int(used[-1]) + 1 if len(used) else 0]


def stored(made: Made, latents: torch.dtype, texts: torch.dtype) -> Made:
    """In the types of the disk."""
    cond, own = (
        {k: v.to(dtype) if v.is_floating_point() else v for k, v in part.items()}
        for part, dtype in ((made.cond, texts), (made.own, latents))
    )
    return evolve(made, x=made.x.to(latents), cond=cond, own=own)
