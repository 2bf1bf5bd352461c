"""Encoded data on disk: safetensors and JSON, each shard complete in itself, and an index that is written last.

index.json                 what was encoded with what, shapes and types, the shards with their sizes and hashes
shard-00000.safetensors    "x" [n, F, C, H, W]; "cond/NAME": of each prompt in the shard the rows that are not padding;
                           "own/NAME" [n, ...]: of each sample, such as what its first frame is made into;
                           in the file's metadata its head: the prompts, which sample has which, a hash a sample
null.safetensors           "NAME" [1, ...]: what guidance calls no condition

A hash in the index vouches for a shard's head, and a hash in the head for each sample's latent and text: what is read
is verified as it is read, at the cost of the bytes that are read anyhow, and no more.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, field, frozen
from torch import Tensor

FORMAT = 2
MADE_BY = "`flowmap data synth` and `flowmap data encode` make it"
AGAIN = "put back a copy of it, or delete it and make the data again"
INDEX, NULL, HEAD, OWN = "index.json", "null.safetensors", "flowmap", "own/"
SHARD = re.compile(r"shard-[0-9]{5,7}\.safetensors")
MOST_BYTES = 1 << 28
"""Of an index or a head: of some millions of samples."""
MOST_ELEMENTS = 1 << 34
"""Of one latent or text, 64 GiB in float32."""
MOST_SHARDS = 10**7
DTYPES = {
    str(t).removeprefix("torch."): t
    for t in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.bool)
}


MOST_TOLD = 20
"""Bad samples that a message names; the rest is counted."""


def _strings(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(str, values))


class DataError(ValueError):
    """The data cannot be used, and why."""


class BadSamplesError(DataError):
    """Some samples cannot be made. samples: of each its name, and why."""

    def __init__(self, samples: Sequence[tuple[str, str]]) -> None:
        self.samples = tuple(samples)
        super().__init__(f"{len(self.samples)} cannot be made:{told(self.samples)}")


def told(samples: Sequence[tuple[str, str]]) -> str:
    """Lines under a message, one a sample."""
    lines = [f"\n  {why}" for _, why in samples[:MOST_TOLD]]
    more = f"\n  ... {len(samples) - MOST_TOLD} more" if len(samples) > MOST_TOLD else ""
    return "".join(lines) + more


@frozen
class Entry:
    """shape: of one sample's, padding included. dtype: as it is stored."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, value: Tensor) -> Entry:
        """Of values [n, ...]."""
        return cls(tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."))


@frozen
class File:
    """sha256: of a shard's head, or of the whole of null.safetensors."""

    file: str
    count: int
    bytes: int
    sha256: str


@frozen
class Skipped:
    """A sample that could not be made and was left out. file: of the shard that would have it."""

    file: str
    sample: str
    why: str


@frozen
class Origin:
    """Where a sample is from. clip: its name. first: the number of its first frame there, at the rate of the data.
    rate: of the clip, frames a second, where it says so. cut: the share of the picture that was cut away.
    """

    clip: str
    first: int = 0
    rate: float | None = None
    cut: float = 0.0
    remarks: tuple[str, ...] = field(default=(), converter=_strings)


@frozen
class Plan:
    """What is to be written: `count` samples, `shard` of them a file.

    made_from: everything that the bytes follow from, as JSON. encoders: hashes of what made latents and texts.
    """

    count: int
    shard: int
    made_from: Mapping[str, Any]
    encoders: Mapping[str, str]

    def __attrs_post_init__(self) -> None:
        if min(self.count, self.shard) < 1 or -(-self.count // self.shard) > MOST_SHARDS:
            raise DataError(f"{self.count} samples, {self.shard} a shard: must be 1 to {MOST_SHARDS} shards")

    def json(self) -> dict[str, Any]:
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self)))}

    @property
    def files(self) -> list[str]:
        """Every file but the index."""
        return [NULL, *(f"shard-{k:05d}.safetensors" for k in range(-(-self.count // self.shard)))]

    def samples(self, file: str) -> range:
        """The numbers of those in a file; of the null prompt's, none."""
        if file == NULL:
            return range(0)
        first = int(file[len("shard-") : -len(".safetensors")]) * self.shard
        return range(first, min(first + self.shard, self.count))

    def counted(self, files: Iterable[str]) -> int:
        """How many samples they have, those that cannot be made among them."""
        return sum(len(self.samples(file)) for file in files)


@frozen
class Index:
    latent: Entry
    cond: Mapping[str, Entry]
    null: File
    shards: tuple[File, ...]
    plan: Plan
    skipped: tuple[Skipped, ...] = ()
    origins: Mapping[str, tuple[Origin, ...]] = field(factory=dict)  # of the samples of a shard, where they are clips

    @property
    def count(self) -> int:
        """Of the samples that are there."""
        return sum(shard.count for shard in self.shards)

    def json(self) -> dict[str, Any]:
        own = asdict(
            self, filter=lambda a, value: a.name != "plan" and not (a.name in ("skipped", "origins") and not value)
        )
        return {**self.plan.json(), **json.loads(json.dumps(own))}

    def fingerprint(self) -> str:
        """sha256 of all that training can see."""
        seen = [asdict(self.latent), {k: asdict(v) for k, v in sorted(self.cond.items())}, self.null.sha256]
        shards = [(shard.count, shard.sha256) for shard in self.shards]
        return hashlib.sha256(json.dumps([seen, shards]).encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> Index:
        """The index of the directory `path`, every value looked at."""
        try:
            if (path / INDEX).stat().st_size > MOST_BYTES:
                raise DataError(f"{path / INDEX} has more than {MOST_BYTES} bytes")
            found = json.loads((path / INDEX).read_text())
        except OSError as error:
            raise DataError(f"{path} holds no encoded data: {INDEX}: {error.strerror}; {MADE_BY}") from None
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path / INDEX} is damaged: {error}; {AGAIN}") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            given = found.get("format", 1) if isinstance(found, dict) else "none"
            raise DataError(f"{path / INDEX} has the format {given!r}: must be {FORMAT}; encode the data again")
        try:
            return _index(found)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path / INDEX} is damaged: {what}; {AGAIN}") from None


def _index(found: Mapping[str, Any]) -> Index:
    latent = _entry("latent", found["latent"])
    cond = {str(name): _entry(f"cond.{name}", entry) for name, entry in found["cond"].items()}
    null, shards = _file("null", found["null"]), tuple(_file("shards", shard) for shard in found["shards"])
    if null.file != NULL:
        raise ValueError(f"null.file = {null.file!r}: must be {NULL!r}")
    for shard in shards:
        if not SHARD.fullmatch(shard.file):
            raise ValueError(f"{shard.file!r} is no name of a shard: must be such as 'shard-00000.safetensors'")
    names = [shard.file for shard in shards]
    if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        raise ValueError(f"{twice[0]} is listed twice")
    encoders = {str(k): str(v) for k, v in found["encoders"].items()}
    plan = Plan(_whole("count", found["count"]), _whole("shard", found["shard"]), dict(found["made_from"]), encoders)
    skipped = tuple(Skipped(str(one["file"]), str(one["sample"]), str(one["why"])) for one in found.get("skipped", ()))
    origins = {str(file): tuple(Origin(**one) for one in of) for file, of in found.get("origins", {}).items()}
    if wrong := [s.file for s in shards if origins and len(origins.get(s.file, ())) != s.count]:
        raise ValueError(f"origins: {wrong[0]} has not as many of them as samples")
    index = Index(latent, cond, null, shards, plan, skipped, origins)
    if plan.count != index.count + len(skipped):
        left = f" and {len(skipped)} were left out" if skipped else ""
        raise ValueError(f"count = {plan.count}, but the shards have {index.count} samples{left}")
    return index


def _entry(name: str, found: Mapping[str, Any]) -> Entry:
    shape = tuple(_whole(f"{name}.shape", n) for n in found["shape"])
    if prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"{name}.shape = {shape}: must have at most {MOST_ELEMENTS} elements")
    if found["dtype"] not in DTYPES:
        raise ValueError(f"{name}.dtype = {found['dtype']!r}: must be one of {', '.join(DTYPES)}")
    return Entry(shape, found["dtype"])


def _file(name: str, found: Mapping[str, Any]) -> File:
    if not isinstance(found["file"], str) or not re.fullmatch(r"[0-9a-f]{64}", str(found["sha256"])):
        raise ValueError(f"{name}: {str(found)[:100]} has no file name or no sha256")
    counts = _whole(f"{name}.count", found["count"]), _whole(f"{name}.bytes", found["bytes"])
    return File(found["file"], *counts, str(found["sha256"]))


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 1 << 48:
        raise ValueError(f"{name} = {str(value)[:40]}: must be a whole number, at least 1")
    return value


def regular(root: Path, file: File) -> Path:
    """The path of a file of the index, of the size that the index says, or a DataError.

    Its name is that of a shard, so it has no directory in it; and a link must not lead out of `root`.
    """
    path = root / file.file
    try:
        inside, found = path.resolve(strict=True).is_relative_to(root.resolve()), path.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise DataError(f"{path} is missing: {getattr(error, 'strerror', None) or error}") from None
    if not inside:
        raise DataError(f"{path} is a link that leads out of {root}")
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is no regular file")
    if found.st_size != file.bytes:
        raise DataError(f"{path} has {found.st_size} bytes: must have {file.bytes}, so it is damaged")
    return path


def sample_hash(x: Tensor, prompt: str, texts: Sequence[tuple[str, Tensor]]) -> str:
    """sha256 of one sample as it is stored; shapes and types stand in the index."""
    found = hashlib.sha256(prompt.encode("utf-8", "surrogatepass"))
    for name, value in [("x", x), *texts]:
        found.update(f"\0{name} {value.numel()}\n".encode())
        found.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
