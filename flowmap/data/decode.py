"""Clips with their captions: in a folder, or in tars of the webdataset layout, of which nothing is ever unpacked.

Whoever made them is not trusted: no name leads anywhere, links do not leave the folder, sizes are bounded, and the
decoder opens video files alone, not playlists that name other files.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional as F

from .format import DataError

CAPTIONS = "captions.json"
MOST_TEXT, MOST_LIST, MOST_CLIP = 1 << 16, 1 << 28, 1 << 32
"""Bytes of a caption, of captions.json, of a clip in a tar."""
MOST_PIXELS = 1 << 26
"""Of a frame."""
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,gif,image2,png_pipe,jpeg_pipe"
"""FFmpeg's names: by itself it goes by the content, and a playlist that is called .mp4 would open what it names."""
COMPRESSED = {".tar.gz": "gunzip", ".tgz": "gunzip", ".tar.zst": "unzstd", ".tar.xz": "unxz", ".tar.bz2": "bunzip2"}
OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
OTHERS = (".mov", ".mkv", ".webm", ".avi", ".gif")


@frozen
class Clip:
    """key: its name, for messages and in order. offset: where it begins in the tar `file`; None is the whole file."""

    key: str
    file: Path
    size: int
    caption: str
    offset: int | None = None

    def frames(self, most: int | None = None) -> Tensor:
        """[n, 3, H, W] in [0, 1]: its frames, or its first `most`."""
        if self.offset is None:
            return frames_of(self.file, most)
        with self.file.open("rb") as file:
            file.seek(self.offset)
            return _decoded(BytesIO(file.read(self.size)), f"{self.file}: {self.key}", most)


def find(path: Path) -> list[Clip]:
    """The clips of a folder, of its tars, or of one tar, in the order of their names; an error for what is missing."""
    if path.is_file() and path.suffix.lower() == ".tar":
        return _captioned(path, _in_tar(path))
    if path.is_file():
        raise DataError(f"{path} is neither a directory nor a .tar{_unpack([path])}")
    if not path.is_dir():
        raise DataError(f"{str(path)!r}: there is no such directory")
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    clips = [file for file in files if file.suffix.lower() == ".mp4"]
    tars = [file for file in files if file.suffix.lower() == ".tar"]
    if not clips and not tars:
        raise DataError(f"{str(path)!r}: there are no .mp4 files{_instead(files)}")
    return [*_in_folder(path, clips), *(clip for tar in tars for clip in _captioned(tar, _in_tar(tar)))]


def _instead(files: list[Path]) -> str:
    kinds = [file.suffix.lower() for file in files]
    if there := [f"{kinds.count(kind)} {kind}" for kind in OTHERS if kind in kinds]:
        return f", but {', '.join(there)}: convert them, such as with `ffmpeg -i clip{there[0].split()[1]} clip.mp4`"
    if packed := _unpack(files):
        return packed
    folders = [file.name for file in files if file.is_dir() and any(file.glob("*.[mM][pP]4"))]
    return f"; did you mean {folders[0]!r} inside it?" if folders else ""


def _unpack(files: list[Path]) -> str:
    """What to do about compressed tars, in which no place can be gone to."""
    for file in files:
        for ending, program in COMPRESSED.items():
            if file.name.lower().endswith(ending):
                how = f"unpack it to a .tar, such as with `{program} {file.name}`"
                return f", but {file.name}: compressed tars cannot be read; {how}"
    return ""


def _in_folder(root: Path, files: list[Path]) -> list[Clip]:
    captions, inside = _captions(root, {file.name for file in files}), root.resolve()
    found: list[Clip] = []
    missing: list[str] = []
    for file in files:
        text = file.with_suffix(".txt")
        for part in (file, text):
            if part.is_symlink() and not part.resolve().is_relative_to(inside):
                raise DataError(f"{part} is a link that leads out of {root}: link the whole folder, or copy the file")
        if file.name in captions:
            found.append(Clip(file.name, file, file.stat().st_size, captions[file.name]))
        elif text.is_file():
            found.append(Clip(file.name, file, file.stat().st_size, _text(text.name, text.read_bytes())))
        else:
            missing.append(file.name)
    if missing:
        raise DataError(
            f"{root}: {len(missing)} clips have no caption, such as {missing[0]} (same name, .txt, or in {CAPTIONS})"
        )
    return found


def _captions(root: Path, names: set[str]) -> Mapping[str, str]:
    """captions.json, {"clip.mp4": "its caption"}; every name must be of a clip that is there."""
    file = root / CAPTIONS
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
    if unknown := sorted(found.keys() - names):
        raise DataError(f"{file} names {unknown[0]!r}, which is no .mp4 file of {root}")
    return {name: text.strip() for name, text in found.items()}


def _in_tar(path: Path) -> Iterator[tuple[str, Clip | str]]:
    """(key, a clip without its caption) and (key, a caption), as they come: KEY.mp4, KEY.txt, KEY.json."""
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                key, kind = _key(path, member)
                most = MOST_CLIP if kind == "mp4" else MOST_TEXT
                if kind not in ("mp4", "txt", "json"):
                    continue
                if member.size > most or member.offset_data + member.size > length:
                    raise DataError(f"{path}: {member.name!r} has {member.size} bytes: it is cut short, or too large")
                if kind == "mp4":
                    yield key, Clip(key, path, member.size, "", member.offset_data)
                    continue
                content = tar.extractfile(member)
                assert content is not None
                text = content.read()
                yield key, _text(member.name, text) if kind == "txt" else _described(path, member.name, text)
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


def _captioned(path: Path, members: Iterator[tuple[str, Clip | str]]) -> list[Clip]:
    clips: dict[str, Clip] = {}
    captions: dict[str, str] = {}
    for key, value in members:
        if isinstance(value, str):
            captions.setdefault(key, value)
        elif key in clips:
            raise DataError(f"{path}: there are two clips {key!r}")
        else:
            clips[key] = value
    if not clips:
        raise DataError(f"{path}: there are no .mp4 members")
    if missing := sorted(clips.keys() - captions.keys()):
        raise DataError(f"{path}: {len(missing)} clips have no caption, such as {missing[0]} (same key, .txt or .json)")
    return [Clip(key, c.file, c.size, captions[key], c.offset) for key, c in sorted(clips.items())]


def _described(path: Path, name: str, content: bytes) -> str:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {name!r} is no JSON: {error}") from None
    texts = [found.get(key) for key in ("caption", "text", "prompt")] if isinstance(found, dict) else []
    text = next((text for text in texts if isinstance(text, str)), None)
    if text is None:
        raise DataError(f"{path}: {name!r} has no caption: must be an object with 'caption', 'text' or 'prompt'")
    return text.strip()


def _text(name: str, content: bytes) -> str:
    if len(content) > MOST_TEXT:
        raise DataError(f"{name} has {len(content)} bytes: a caption must have at most {MOST_TEXT}")
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        raise DataError(f"{name} is no text in UTF-8") from None


def frames_of(file: Path, most: int | None = None) -> Tensor:
    """[n, 3, H, W] in [0, 1]: the frames of a video, or its first `most`; one, of an image."""
    return _decoded(str(file), str(file), most)


def frames_said(file: Path) -> int | str | None:
    """How many frames a video file says that it has, or None; or what is wrong with it. Nothing is decoded."""
    import av

    try:
        with av.open(str(file), options=OPTIONS) as container:
            return container.streams.video[0].frames or None
    except (av.FFmpegError, IndexError) as error:
        return f"{file} is no video or image that can be read: {_why(error)}"


def _decoded(source: str | BytesIO, name: str, most: int | None) -> Tensor:
    import av

    try:
        with av.open(source, options=OPTIONS) as container:
            decoded = [_picture(frame, name) for frame in islice(container.decode(video=0), most)]
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{name} is no video or image that can be read: {_why(error)}") from error
    if not decoded:
        raise DataError(f"{name} has no frames")
    return torch.stack([torch.from_numpy(frame) for frame in decoded]).permute(0, 3, 1, 2).float() / 255


def _why(error: Exception) -> str:
    """Without the file's name, which stands before it."""
    import av

    return error.strerror if isinstance(error, av.FFmpegError) else "there is no picture in it"


def _picture(frame: Any, name: str) -> Any:
    if frame.width * frame.height > MOST_PIXELS:
        raise DataError(f"{name} is {frame.width}x{frame.height}: must have at most {MOST_PIXELS} pixels a frame")
    return frame.to_ndarray(format="rgb24")


def fit(video: Tensor, height: int, width: int) -> Tensor:
    """Scale to cover height × width, keeping the aspect ratio, and cut about the centre."""
    h, w = video.shape[-2:]
    scale = max(height / h, width / w)
    size = (max(height, round(h * scale)), max(width, round(w * scale)))
    video = F.interpolate(video, size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return video[..., top : top + height, left : left + width]
