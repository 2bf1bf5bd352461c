"""Clips in tars of the webdataset layout, of which nothing is ever unpacked: KEY.mp4 beside KEY.txt or KEY.json."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from attrs import evolve

from .clip import MOST_TEXT, VIDEOS, Clip, as_text
from .format import DataError

MOST_CLIP = 1 << 32
"""Bytes."""
KINDS = tuple(kind.removeprefix(".") for kind in VIDEOS)


def in_tar(path: Path) -> list[Clip]:
    clips: dict[str, Clip] = {}
    captions: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for key, value in _members(path):
        if isinstance(value, str):
            captions.setdefault(key, value)
        elif isinstance(value, DataError):
            wrong.setdefault(key, str(value))
        elif key in clips:
            raise DataError(f"{path}: there are two clips {key!r}")
        else:
            clips[key] = value
    if not clips:
        raise DataError(f"{path}: there are no clips in it ({', '.join(VIDEOS)})")
    return [
        evolve(clip, caption=captions.get(key), wrong=None if key in captions else wrong.get(key))
        for key, clip in sorted(clips.items())
    ]


def _members(path: Path) -> Iterator[tuple[str, Clip | str | DataError]]:
    """(key, a clip without its caption), (key, a caption) or (key, what is wrong with one), as they come."""
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                key, kind = _key(path, member)
                if kind not in (*KINDS, "txt", "json"):
                    continue
                if (
                    member.size > (MOST_CLIP if kind in KINDS else MOST_TEXT)
                    or member.offset_data + member.size > length
                ):
                    raise DataError(f"{path}: {member.name!r} has {member.size} bytes: it is cut short, or too large")
                if kind in KINDS:
                    yield key, Clip(key, path, member.size, None, member.offset_data)
                    continue
                content = tar.extractfile(member)
                assert content is not None
                name, text = f"{path}: {member.name!r}", content.read()
                try:
                    yield key, as_text(name, text) if kind == "txt" else _described(name, text)
                except DataError as error:
                    yield key, error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path} is no tar that can be read (compressed ones cannot): {error}") from None


def _key(path: Path, member: tarfile.TarInfo) -> tuple[str, str]:
    """A member's key, up to the first dot of its last part, and its kind; an error for one that leads anywhere."""
    parts = member.name.removeprefix("./").split("/")
    if not {"..", ""}.isdisjoint(parts) or {"\0", "\\"} & set(member.name):
        raise DataError(f"{path}: a member is called {member.name!r}: must be a name inside the tar")
    if not member.isreg() or member.issparse():
        raise DataError(f"{path}: {member.name!r} is a link or no regular file: a tar of clips must have files alone")
    stem, _, kind = parts[-1].partition(".")
    return "/".join([*parts[:-1], stem]), kind.lower()


def _described(name: str, content: bytes) -> str:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is no JSON: {error}") from None
    texts = [found.get(key) for key in ("caption", "text", "prompt")] if isinstance(found, dict) else []
    text = next((text for text in texts if isinstance(text, str)), None)
    if text is None:
        raise DataError(f"{name} has no caption: must be an object with 'caption', 'text' or 'prompt'")
    return text.strip()
