"""A clip with its caption: a file, or a part of one."""

from __future__ import annotations

import os
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO, cast

from attrs import frozen

from .decode import Source
from .format import DataError

MOST_TEXT = 1 << 16
"""Bytes of a caption."""
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm")


@frozen
class Clip:
    """key: its name, for messages and in order. offset: where it begins in the tar `file`; None is the whole file.
    caption: None where there is none, or none that can be read, and `wrong` says what is the matter with it.
    """

    key: str
    file: Path
    size: int
    caption: str | None
    offset: int | None = None
    wrong: str | None = None

    @property
    def name(self) -> str:
        return str(self.file) if self.offset is None else f"{self.file}: {self.key}"

    def source(self) -> Source:
        """What a decoder opens."""
        return str(self.file) if self.offset is None else cast(BinaryIO, Part(self.file, self.offset, self.size))


class Part(RawIOBase):
    """`size` bytes of a file from `offset` on, as a file that is read: nothing is unpacked, nor held in memory."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = path.open("rb"), offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, to + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, n: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._offset + self._at)
        found = self._file.read(left if n is None or n < 0 else min(n, left))
        self._at += len(found)
        return found

    def close(self) -> None:
        self._file.close()
        super().close()


def as_text(name: str, content: bytes) -> str:
    if len(content) > MOST_TEXT:
        raise DataError(f"{name} has {len(content)} bytes: a caption must have at most {MOST_TEXT}")
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        raise DataError(f"{name} is no text in UTF-8") from None
