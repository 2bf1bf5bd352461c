"""Clips with their captions: in a folder and the folders in it, or in tars of the webdataset layout.

Whoever made them is not trusted: no name leads anywhere, links do not leave the folder, sizes are bounded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from .clip import VIDEOS, Clip, as_text
from .format import DataError
from .tars import in_tar

CAPTIONS = "captions.json"
MOST_LIST = 1 << 28
"""Bytes of captions.json."""
COMPRESSED = {".tar.gz": "gunzip", ".tgz": "gunzip", ".tar.zst": "unzstd", ".tar.xz": "unxz", ".tar.bz2": "bunzip2"}
OTHERS = (".avi", ".gif", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".m2ts", ".3gp", ".ogv", ".y4m")


def find(path: Path) -> list[Clip]:
    """The clips of a folder and those below it, of their tars, or of one tar, in the order of their names."""
    if path.is_file() and path.suffix.lower() == ".tar":
        return in_tar(path)
    if path.is_file():
        raise DataError(f"{path} is neither a directory nor a .tar{_unpack([path])}")
    if not path.is_dir():
        raise DataError(f"{str(path)!r}: there is no such directory")
    files = sorted(_files(path))
    videos = [file for file in files if file.suffix.lower() in VIDEOS]
    tars = [file for file in files if file.suffix.lower() == ".tar"]
    if not videos and not tars:
        raise DataError(f"{str(path)!r}: there are no clips ({', '.join(VIDEOS)}, or .tar){_instead(files)}")
    return [*_in_folder(path, videos), *(clip for tar in tars for clip in in_tar(tar))]


def left(path: Path) -> str | None:
    """What is to be said of videos in a folder that are not taken."""
    files = [*_files(path)] if path.is_dir() else []
    return _others(files)


def _files(path: Path) -> Iterator[Path]:
    """All below `path` but what is hidden; links to folders are not followed, and one that leads out is an error."""
    inside = path.resolve()
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (link := Path(folder, name)).is_symlink() and not link.resolve().is_relative_to(inside):
                raise DataError(f"{link} is a link that leads out of {path}: give that folder, or copy it")
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _others(files: list[Path]) -> str | None:
    kinds = [file.suffix.lower() for file in files]
    there = [f"{kinds.count(kind)} {kind}" for kind in OTHERS if kind in kinds]
    if not there:
        return None
    return f"{', '.join(there)}: convert them, such as with `ffmpeg -i clip{there[0].split()[1]} clip.mp4`"


def _instead(files: list[Path]) -> str:
    if others := _others(files):
        return f", but {others}"
    return _unpack(files)


def _unpack(files: list[Path]) -> str:
    """What to do about compressed tars, in which no place can be gone to."""
    for file in files:
        for ending, program in COMPRESSED.items():
            if file.name.lower().endswith(ending):
                how = f"unpack it to a .tar, such as with `{program} {file.name}`"
                return f", but {file.name}: compressed tars cannot be read; {how}"
    return ""


def _in_folder(root: Path, files: list[Path]) -> list[Clip]:
    captions, inside = _captions(root, files), root.resolve()
    found: list[Clip] = []
    for file in files:
        text, wrong = file.with_suffix(".txt"), None
        for part in (file, text):
            if part.is_symlink() and not part.resolve().is_relative_to(inside):
                raise DataError(f"{part} is a link that leads out of {root}: link the whole folder, or copy the file")
        caption = captions.get(file)
        if caption is None and text.is_file():
            try:
                caption = as_text(str(text), text.read_bytes())
            except DataError as error:
                wrong = str(error)
        found.append(Clip(file.relative_to(root).as_posix(), file, file.stat().st_size, caption, None, wrong))
    return found


def _captions(root: Path, files: list[Path]) -> dict[Path, str]:
    """By clip, from every captions.json, {"clip.mp4": "its caption"}, whose names are of clips below its folder."""
    known, found = {*files}, dict[Path, str]()
    for folder in sorted({root, *(parent for file in files for parent in file.parents if root in parent.parents)}):
        for name, text in _listed(root, folder / CAPTIONS).items():
            clip = folder / name
            if ".." in Path(name).parts or clip not in known:
                raise DataError(f"{folder / CAPTIONS} names {name!r}, which is no clip of {folder}")
            found[clip] = text.strip()
    return found


def _listed(root: Path, file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    if not file.resolve().is_relative_to(root.resolve()) or file.stat().st_size > MOST_LIST:
        raise DataError(f"{file}: must be a file in {root} of at most {MOST_LIST} bytes")
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise DataError(f'{file} must map names to captions: {{"clip.mp4": "a caption"}}')
    return found
