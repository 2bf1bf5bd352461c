"""Clips and captions of others: what is taken, and what is not (R14)."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmap.data import DataError
from flowmap.data.clip import Clip
from flowmap.data.clips import find
from flowmap.data.decode import Take, decode, frames_of
from flowmap.evaluation.previews import write_video


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: Any) -> bytes:
    import torch

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(torch.rand(9, 3, 32, 32), path)
    return bytes(path.read_bytes())


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def made(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add(tar, name, data)
    return path


# ---------------------------------------------------------------- folders
def test_captions_from_one_file_and_from_many(tmp_path: Path, mp4: bytes) -> None:
    for name in ("a.mp4", "b.MP4", "c.mp4"):
        (tmp_path / name).write_bytes(mp4)
    (tmp_path / "b.txt").write_text(" two ")
    (tmp_path / "captions.json").write_text(json.dumps({"a.mp4": "one", "c.mp4": "three\n"}))
    (tmp_path / ".hidden.mp4").write_bytes(b"")
    assert [(clip.key, clip.caption) for clip in find(tmp_path)] == [
        ("a.mp4", "one"),
        ("b.MP4", "two"),
        ("c.mp4", "three"),
    ]
    clip = find(tmp_path)[1]
    frames = decode(clip.source(), clip.name, Take(4)).frames
    assert frames.shape[0] == 4 and frames.shape[1] == 3


@pytest.mark.parametrize("name", ["../a.mp4", "/etc/passwd", "a.mp4\0", "b.mp4", "sub/a.mp4", "captions.json"])
def test_captions_name_only_clips_of_the_folder(tmp_path: Path, name: str, mp4: bytes) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "a.mp4").write_bytes(mp4)
    (tmp_path / "clips" / "a.mp4").write_bytes(mp4)
    (tmp_path / "clips" / "captions.json").write_text(json.dumps({"a.mp4": "one", name: "two"}))
    with pytest.raises(DataError, match=r"names '.*', which is no clip of"):
        find(tmp_path / "clips")


@pytest.mark.parametrize("text", ["[]", '{"a.mp4": 3}', "{", "[" * 100_000, "\xff"])
def test_captions_are_a_mapping(tmp_path: Path, text: str, mp4: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(mp4)
    (tmp_path / "captions.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"captions\.json (is no JSON|must map names to captions)"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["a.mp4", "a.txt"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str, mp4: bytes) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(mp4)
    (tmp_path / "clips" / "a.txt").write_text("one")
    (tmp_path / "clips" / name).rename(tmp_path / "outside")
    (tmp_path / "clips" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="is a link that leads out of"):
        find(tmp_path / "clips")


def test_a_caption_is_text_of_some_length(tmp_path: Path, mp4: bytes) -> None:
    """One that is not is a fault of its clip alone."""
    (tmp_path / "a.mp4").write_bytes(mp4)
    for text, said in ((b"x" * (1 << 17), "a caption must have at most"), (b"\xff\xfe\xfa", "is no text in UTF-8")):
        (tmp_path / "a.txt").write_bytes(text)
        (clip,) = find(tmp_path)
        assert clip.caption is None and clip.wrong is not None and said in clip.wrong


def test_what_is_wrong_comes_with_a_hint(tmp_path: Path, mp4: bytes) -> None:
    with pytest.raises(DataError, match="there is no such directory"):
        find(tmp_path / "none")
    (tmp_path / "a.avi").write_bytes(mp4)
    with pytest.raises(DataError, match=r"no clips .*, but 1 \.avi: convert them, .* `ffmpeg -i clip\.avi"):
        find(tmp_path)


# ---------------------------------------------------------------- what the decoder opens
def test_a_playlist_is_no_video(tmp_path: Path, mp4: bytes) -> None:
    """FFmpeg goes by the content: a list that is called .mp4 would open the files that it names."""
    (tmp_path / "secret.mp4").write_bytes(mp4)
    assert len(frames_of(tmp_path / "secret.mp4")) >= 9
    lists = {
        "concat": "ffconcat version 1.0\nfile secret.mp4\n",
        "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    }
    for name, text in lists.items():
        (tmp_path / f"{name}.mp4").write_text(text)
        with pytest.raises(DataError, match="is no video or image that can be read"):
            frames_of(tmp_path / f"{name}.mp4")
        (clip,) = find(made(tmp_path / "a.tar", ("x.mp4", text.encode()), ("x.txt", b"x")))
        with pytest.raises(DataError, match="is no video or image that can be read"):
            decode(clip.source(), clip.name, Take())


def test_a_playlist_would_be_opened_otherwise(tmp_path: Path, mp4: bytes) -> None:
    import av

    (tmp_path / "secret.mp4").write_bytes(mp4)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with av.open(str(tmp_path / "list.mp4")) as container:
        assert next(container.decode(video=0)).to_ndarray(format="rgb24").dtype == np.uint8


def test_frames_are_bounded(tmp_path: Path, mp4: bytes, monkeypatch: Any) -> None:
    (tmp_path / "a.mp4").write_bytes(mp4)
    monkeypatch.setattr("flowmap.data.decode.MOST_PIXELS", 1000)
    with pytest.raises(DataError, match="must have at most 1000 pixels a frame"):
        frames_of(tmp_path / "a.mp4")


# ---------------------------------------------------------------- tars
@pytest.mark.parametrize(
    "name", ["../evil.mp4", "/abs/evil.mp4", "a/../../evil.mp4", "a\\..\\evil.mp4", "a//evil.mp4", "..", "x/.."]
)
def test_a_member_that_leads_anywhere_is_refused(tmp_path: Path, name: str, mp4: bytes) -> None:
    tar = made(tmp_path / "a.tar", ("good.mp4", mp4), ("good.txt", b"x"), (name, mp4))
    with pytest.raises(DataError, match="must be a name inside the tar"):
        find(tar)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]


def test_a_name_ends_at_its_nul_and_in_a_header_of_its_own_it_is_refused(tmp_path: Path, mp4: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "x.mp4", mp4, pax_headers={"path": "evil\0.mp4"})
    with pytest.raises(DataError, match=r"must be a name inside the tar|no tar that can be read"):
        find(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_or_a_device_is_refused(tmp_path: Path, kind: bytes, mp4: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "x.mp4", b"", type=kind, linkname="/etc/passwd")
    with pytest.raises(DataError, match="is a link or no regular file"):
        find(tmp_path / "a.tar")


BROKEN: dict[str, tuple[Callable[[Path, bytes], Path], str]] = {
    "no clips": (lambda p, v: made(p, ("a.txt", b"x")), "there are no clips in it"),
    "twice": (lambda p, v: made(p, ("a.mp4", v), ("a.txt", b"x"), ("a.mp4", v)), "there are two clips 'a'"),
    "long": (lambda p, v: made(p, ("a.mp4", v), ("a.txt", b"x" * (1 << 17))), "cut short, or too large"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_a_tar_lacks_is_named(tmp_path: Path, kind: str, mp4: bytes) -> None:
    make, said = BROKEN[kind]
    with pytest.raises(DataError, match=said):
        find(make(tmp_path / "a.tar", mp4))


@pytest.mark.parametrize(
    "text, said",
    [
        (None, None),
        (b"{", "is no JSON"),
        (b"[" * 60_000, "is no JSON"),
        (b'{"caption": 3}', "has no caption: must be an object"),
    ],
)
def test_a_caption_that_cannot_be_read_is_a_fault_of_its_clip(
    tmp_path: Path, text: bytes | None, said: str | None, mp4: bytes
) -> None:
    beside = [] if text is None else [("a.json", text)]
    (clip,) = find(made(tmp_path / "a.tar", ("a.mp4", mp4), *beside))
    assert clip.caption is None
    assert clip.wrong is None if said is None else said in str(clip.wrong)


def test_a_member_is_read_where_it_lies(tmp_path: Path, mp4: bytes) -> None:
    """And no byte beyond it."""
    (clip,) = find(made(tmp_path / "a.tar", ("x.txt", b"x"), ("a/b.webm", mp4), ("a/b.txt", b"two")))
    part = clip.source()
    assert not isinstance(part, str) and part.read() == mp4 and part.read(1) == b""
    assert part.seek(-3, io.SEEK_END) == len(mp4) - 3 and part.read(100) == mp4[-3:]
    assert len(decode(clip.source(), clip.name, Take(3)).frames) == 3


def test_folders_below_are_taken(tmp_path: Path, mp4: bytes) -> None:
    """With captions of their own, or of the folder above; what is hidden is not looked at."""
    for name in ("a.mp4", "x/b.MOV", "x/y/c.mkv", ".hid/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(mp4)
    (tmp_path / "x" / "b.txt").write_text("two")
    (tmp_path / "captions.json").write_text(json.dumps({"a.mp4": "one", "x/y/c.mkv": "far"}))
    (tmp_path / "x" / "captions.json").write_text(json.dumps({"y/c.mkv": "three"}))
    found = [(clip.key, clip.caption) for clip in find(tmp_path)]
    assert found == [("a.mp4", "one"), ("x/b.MOV", "two"), ("x/y/c.mkv", "three")]
    (tmp_path / "link").symlink_to(tmp_path.parent)
    with pytest.raises(DataError, match="link is a link that leads out of"):
        find(tmp_path)


def test_a_tar_that_is_cut_short_or_compressed_is_refused(tmp_path: Path, mp4: bytes) -> None:
    path = made(tmp_path / "a.tar", ("a.txt", b"x"), ("a.mp4", mp4))
    whole = path.read_bytes()
    path.write_bytes(whole[: 1024 + 512 + 100])
    with pytest.raises(DataError, match=r"cut short|no tar that can be read"):
        find(path)
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "a.txt", b"x")
    with pytest.raises(DataError, match="compressed ones cannot"):
        find(path)
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match="is no tar that can be read"):
        find(path)


def test_a_clip_that_is_no_video_is_named_with_its_tar(tmp_path: Path) -> None:
    tar = made(tmp_path / "a.tar", ("x.mp4", b"no video"), ("x.txt", b"x"))
    (clip,) = find(tar)
    assert clip == Clip("x", tar, 8, "x", clip.offset)
    with pytest.raises(DataError, match=r"a\.tar: x is no video"):
        decode(clip.source(), clip.name, Take())
