"""Which frames of a clip a sample has: by presentation time, at the backbone's rate, from several places."""

from __future__ import annotations

import re
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from flowmap_digits import TINY_WAN
from flowmap_wan21 import Wan21

from flowmap import LatentFolder, Mixed, VideoFolder
from flowmap.cli import main
from flowmap.data import DataError
from flowmap.data.buckets import best
from flowmap.data.decode import Take, decode, nearest
from flowmap.data.length import counted, reaches
from flowmap.data.remarks import remarks

from .filmed import Pictures, film, turn

BACKBONE = Wan21(TINY_WAN, text_tokens=12)
CPU = torch.device("cpu")
STEP = 5
"""Levels between two frames of `ramp`."""


def ramp(n: int) -> Pictures:
    """Grey frames whose number is their level over STEP: 20, 25, 30, ..."""
    return np.stack([np.full((32, 32, 3), 20 + STEP * k, np.uint8) for k in range(n)])


def numbers(path: Path, take: Take) -> list[int]:
    frames = decode(str(path), str(path), take).frames
    return [round((float(level) - 20) / STEP) for level in frames.float().mean((1, 2, 3))]


def right(times: list[Fraction], fps: int, count: int) -> list[int]:
    """The nearest to k / fps, the earlier of two: by looking at all."""
    return [min(range(len(times)), key=lambda j: (abs(times[j] - Fraction(k, fps)), j)) for k in range(count)]


RATES = {"slower": (8, 16), "same": (16, 16), "faster": (60, 16), "film": (24, 16), "odd": (Fraction(30000, 1001), 16)}


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_frames_are_the_nearest_in_time(name: str, kind: str, tmp_path: Path) -> None:
    """Nine frames of Wan are half a second, whatever the camera's rate."""
    rate, fps = RATES[name]
    path = film(tmp_path / f"a.{kind}", ramp(40), rate=rate)
    times = [k / Fraction(rate) for k in range(40)]
    if kind == "mkv":  # whole milliseconds, half of one up
        times = [Fraction(int(time * 1000 + Fraction(1, 2)), 1000) for time in times]
    assert numbers(path, Take(9, Fraction(fps))) == right(times, fps, 9)
    assert numbers(path, Take(9)) == [*range(9)]


@pytest.mark.parametrize("fps", [8, 16, 30])
def test_a_variable_rate_comes_out_even(fps: int, tmp_path: Path) -> None:
    times = [0, 33, 66, 200, 233, 600, 640, 1000]
    path = film(tmp_path / "a.mp4", ramp(8), times=times)
    assert numbers(path, Take(fps, Fraction(fps))) == right([Fraction(t, 1000) for t in times], fps, fps)


def test_the_first_frame_is_the_beginning_whatever_the_clock_says(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", ramp(12), times=[5000 + 50 * k for k in range(12)])
    assert numbers(path, Take(5, Fraction(20))) == [0, 1, 2, 3, 4]


def test_the_last_frame_counts_for_half_of_its_duration() -> None:
    """So a second of 8 frames has 16 at twice the rate; and one at less than half of it has one."""
    eight = [(Fraction(k, 8), Fraction(1, 8), k) for k in range(8)]
    assert [*nearest(eight, Fraction(16))] == sorted([*range(8), *range(8)])
    assert [*nearest(eight[:1], Fraction(4))] == [0]
    assert [*nearest(eight, Fraction(8), 2, 5)] == [2, 3, 4]


@pytest.mark.parametrize("planted", ["first of two", "before"])
def test_another_choice_would_be_seen(planted: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Planted: frames are counted, or the last one that has begun is taken."""
    path = film(tmp_path / "a.mp4", ramp(40), rate=60)

    def counting(timed: Any, fps: Any, first: int = 0, last: Any = None) -> Any:
        frames = [frame for _, _, frame in timed]
        yield from frames[:: 4 if planted == "first of two" else 3][:9]

    monkeypatch.setattr("flowmap.data.decode.nearest", counting)
    assert numbers(path, Take(9, Fraction(16))) != right([Fraction(k, 60) for k in range(40)], 16, 9)


# ---------------------------------------------------------------- several samples of one clip
@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm"])
@pytest.mark.parametrize("fps", [None, Fraction(16), Fraction(24)])
def test_a_window_is_a_part_of_the_whole(kind: str, fps: Fraction | None, tmp_path: Path) -> None:
    """From a key frame before it, with frames that are stored out of order."""
    options = {} if kind == "webm" else {"bf": "3", "g": "10", "preset": "medium"}
    path = film(tmp_path / f"a.{kind}", ramp(45), rate=24, options=options)
    whole = numbers(path, Take(None, fps))
    for first in (0, 1, 7, 10, 21):
        assert numbers(path, Take(5, fps, first)) == whole[first : first + 5], first
    assert len(whole) == counted(str(path), "a", fps)
    assert reaches(str(path), "a", fps, len(whole)) in (len(whole), None)
    with pytest.raises(DataError, match="has no frames from number 100 on"):
        decode(str(path), str(path), Take(5, fps, 100))


def test_windows_and_their_stride(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    film(clips / "long.mp4", ramp(40))
    film(clips / "short.mp4", ramp(10))
    folder = VideoFolder(clips, 9, 32, 32, windows=100, caption="grey", prefix="a film, ", shard=3)
    data = folder.encode(BACKBONE, tmp_path / "out", device=CPU)
    assert data is not None
    where = [(one.clip, one.first) for of in data.index.origins.values() for one in of]
    assert where == [*(("long.mp4", k) for k in (0, 9, 18, 27)), ("short.mp4", 0)]
    assert {*data.prompts()} == {"a film, grey"}
    codec = BACKBONE.codec(device=CPU, dtype=torch.float32)
    part = decode(str(clips / "long.mp4"), "", Take(9, Fraction(16), 18), (32, 32)).frames
    torch.testing.assert_close(data.batch([2]).x, codec.encode(part[None].float() / 255))
    two = evolve(folder, windows=2, stride=4).encode(BACKBONE, tmp_path / "two", device=CPU)
    assert two is not None
    assert [one.first for of in two.index.origins.values() for one in of] == [0, 4, 0]


def test_windows_of_tars_are_those_of_folders(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    film(clips / "a.mp4", ramp(20))
    (clips / "a.txt").write_text("grey")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.txt", "a.mp4"):
            tar.add(clips / name, name)
    one, two = (
        VideoFolder(source, 9, 32, 32, windows=9).encode(BACKBONE, tmp_path / name, device=CPU)
        for source, name in ((clips, "one"), (tmp_path / "a.tar", "two"))
    )
    assert one is not None and two is not None and len(one) == len(two) == 2
    torch.testing.assert_close(one.batch([0, 1]).x, two.batch([0, 1]).x, rtol=0, atol=0)


# ---------------------------------------------------------------- what is said
def test_all_that_is_wrong_is_said_at_once_and_can_be_left_out(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for name, n in (("a.mp4", 9), ("b.mp4", 3), ("c.mov", 9), ("d.mkv", 9)):
        film(clips / name, ramp(n))
    for name in ("a", "b", "d"):
        (clips / f"{name}.txt").write_text("grey")
    (clips / "d.mkv").write_bytes(b"no film")
    with tarfile.open(clips / "e.tar", "w") as tar:
        tar.add(clips / "b.mp4", "x.mp4")
        tar.add(clips / "b.txt", "x.txt")
    folder = VideoFolder(clips, 9, 32, 32)
    with pytest.raises(DataError, match="4 of 5 clips cannot be encoded, and nothing was begun") as told:
        folder.encode(BACKBONE, tmp_path / "out", device=CPU)
    for said in ("b.mp4 has 3 frames at 16 a second", "c.mov has no caption", "d.mkv is no video", "e.tar: x has 3"):
        assert said in str(told.value)
    assert not (tmp_path / "out").exists()
    data = evolve(folder, bad="skip").encode(BACKBONE, tmp_path / "out", device=CPU)
    assert data is not None and len(data) == 1
    assert [one.sample for one in data.index.skipped] == ["b.mp4", "c.mov", "d.mkv", "x"]


def test_a_duration_that_is_too_short_is_not_believed(tmp_path: Path) -> None:
    """Of variable rates containers say too little: all packets are counted before a clip is called short."""
    path = film(tmp_path / "a.mp4", ramp(8), times=[0, 33, 66, 200, 233, 600, 640, 1000], options={"bf": "3"})
    assert reaches(str(path), "a", Fraction(16), 16) in (16, 17, None)
    assert len(numbers(path, Take(16, Fraction(16)))) == 16


def test_what_is_to_be_looked_at_is_said(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    film(clips / "slow.mp4", ramp(9), rate=8)
    film(clips / "fast.mp4", ramp(30), rate=60, options={"x264-params": "interlaced=1"})
    turn(film(clips / "wide.mp4", np.concatenate([ramp(9), ramp(9)], 1)), (0, 1, -1, 0))
    folder = VideoFolder(clips, 5, 32, 32, caption="grey")
    data = folder.encode(BACKBONE, tmp_path / "out", device=CPU)
    assert data is not None
    cut, slow, combs = remarks(data.index)
    assert cut.startswith("1 of 3 samples loses 50% of the picture on average, wide.mp4 the most with 50%")
    assert "--buckets" in cut
    assert slow.startswith("1 clip (slow.mp4) has fewer than 16 frames a second, so frames repeat")
    assert combs.startswith("1 clip (fast.mp4) is interlaced")
    assert data.index.json()["made_from"]["reader"] == 2 and data.index.json()["made_from"]["folder"]["fps"] == 16.0


def test_captions_that_are_too_long_are_named(tmp_path: Path) -> None:
    """The text encoder reads 12 tokens here, and what is beyond changes nothing."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for name, words in (("a", 5), ("b", 40)):
        film(clips / f"{name}.mp4", ramp(9))
        (clips / f"{name}.txt").write_text("seven " * words)
    data = VideoFolder(clips, 9, 32, 32).encode(
        Wan21(TINY_WAN, text_length=12, text_tokens=12), tmp_path / "out", device=CPU
    )
    assert data is not None
    (said,) = remarks(data.index)
    assert said.startswith("1 clip (b.mp4) has a caption that is longer than the text encoder reads")


def test_several_clips_are_spoken_of_as_several(tmp_path: Path) -> None:
    for name in "ab":
        film(tmp_path / f"{name}.mp4", ramp(9), rate=8)
    data = VideoFolder(tmp_path, 5, 32, 32, caption="grey").encode(BACKBONE, tmp_path / "out", device=CPU)
    assert data is not None
    (said,) = remarks(data.index)
    assert said.startswith("2 clips (a.mp4, b.mp4) have fewer than 16 frames a second")


LONG = "the sun rises over a field of grain, and a train passes"


def test_captions_that_the_backbone_has_no_room_for_are_refused_at_once(tmp_path: Path, capsys: Any) -> None:
    """Of `text_tokens` one is padding; what to raise it to is said, and is enough. Nothing is begun."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for name, words in (("a", "a seven"), ("b", LONG)):
        film(clips / f"{name}.mp4", ramp(9))
        (clips / f"{name}.txt").write_text(words)
    line = ["data", "encode", str(clips), "--backbone", "tiny_wan", "--size", "9x32x32", "--out", str(tmp_path / "out")]
    assert main([*line, "--skip-bad"]) == 2
    said = capsys.readouterr().err
    assert "1 of 3 prompts is too long for text_tokens = 12, which holds 11 tokens and one of padding" in said
    assert f"the longest, {LONG!r}, has " in said and "Traceback" not in said and not (tmp_path / "out").exists()
    least = int(said.partition("text_tokens=")[2].split()[0])
    folder = VideoFolder(clips, 9, 32, 32)
    with pytest.raises(DataError, match=f"text_tokens={least} or more"):
        folder.encode(evolve(BACKBONE, text_tokens=least - 1), tmp_path / "out", device=CPU)
    data = folder.encode(evolve(BACKBONE, text_tokens=least), tmp_path / "out", device=CPU)
    assert data is not None and len(data) == 2
    text = data.batch([1]).cond["text"][0]
    assert not text[-1].any() and text[-2].any()  # whole, and one position of padding

    (tmp_path / "prompts.txt").write_text(f"a seven\n{LONG}\n")
    line = ["data", "synth", "tiny_wan", "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "made")]
    assert main(line) == 2
    assert "text_tokens = 12" in capsys.readouterr().err and not (tmp_path / "made").exists()


def test_the_command_line_takes_rates_and_windows(tmp_path: Path, capsys: Any) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    film(clips / "a.mp4", ramp(40), rate=60)
    line = ["data", "encode", str(clips), "--backbone", "tiny_wan", "--size", "9x32x32", "--caption", "grey"]
    assert main([*line, "--out", str(tmp_path / "a"), "--fps", "keep", "--windows", "3", "--stride", "5"]) == 0
    assert "3 samples" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "a")]) == 0
    for wrong, said in (
        (["--fps", "none"], "must be a number above 0 and at most 1000, or keep"),
        (["--stride", "3"], "--stride is between samples of one clip: give --windows"),
    ):
        capsys.readouterr()
        assert main([*line, "--out", str(tmp_path / "b"), *wrong]) == 2
        assert said in capsys.readouterr().err


def test_encoding_says_what_it_does_from_the_beginning(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """As a run does; every clip counts, also within a shard, and what an earlier call encoded."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in "abc":
        film(clips / f"{name}.mp4", ramp(10), rate=16)
    monkeypatch.setattr("flowmap.training.progress.SELDOM", -1.0)
    monkeypatch.setattr("flowmap.data.encoder.PIXELS", 1)  # a clip a call
    line = ["data", "encode", str(clips), "--backbone", "tiny_wan", "--size", "9x32x32", "--caption", "grey"]
    line += ["--shard-size", "2", "--out", str(tmp_path / "out")]

    left: list[bool] = []

    def told(*more: str) -> list[str]:
        assert main([*line, *more]) == 0
        said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("flowmap: ")]
        assert all(re.fullmatch(r"flowmap: \d+%, \d+:\d\d.* \| [a-z ]+( \d+/\d+)?", text) for text in said)
        left.append(any(re.search(r"0:\d\d left \| encoding 2/", text) for text in said))
        return [*dict.fromkeys(text.rpartition(" | ")[2] for text in said)]

    looked = ["listing the clips", *(f"looking at clips {k}/3" for k in range(4)), "hashing the encoders"]
    assert told("--shard", "1/2") == [*looked, "loading the encoders", "encoding 0/1", "encoding 1/1"]
    assert told() == [
        *("listing the clips", "hashing the encoders", "loading the encoders"),
        *(f"encoding {k}/3" for k in (1, 2, 3)),
    ]
    assert told()[-1] == "hashing the encoders"  # all is there
    assert left == [False, True, False]


def test_a_file_that_is_cut_short_has_fewer_windows(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (27, 32, 32, 3)).astype(np.uint8)
    path = film(clips / "a.mkv", noise, options={"g": "9"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    data = VideoFolder(clips, 9, 32, 32, caption="grey", windows=9).encode(BACKBONE, tmp_path / "out", device=CPU)
    assert data is not None and len(data) == 2 == counted(str(path), "a", Fraction(16)) // 9


# ---------------------------------------------------------------- sizes
def test_a_clip_goes_where_it_loses_least() -> None:
    wide, short, high, square = (81, 480, 832), (33, 480, 832), (81, 832, 480), (81, 480, 480)
    sizes = (wide, short, high, square)
    assert best((200, 720, 1280), sizes) == wide and best((40, 720, 1280), sizes) == short
    assert best((5, 720, 1280), sizes) == short  # too few for any: it is named as such
    assert best((100, 1920, 1080), sizes) == high and best((100, 600, 640), sizes) == square
    assert best((100, 300, 500), (wide, (81, 240, 416))) == (81, 240, 416)  # it is not made larger than it is


def test_buckets_are_a_directory_each(tmp_path: Path, capsys: Any) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    tall = np.concatenate([ramp(20), ramp(20)], 1)
    film(clips / "a.mp4", tall)
    turn(film(clips / "b.mp4", tall), (0, 1, -1, 0))  # is shown wide
    film(clips / "c.mp4", ramp(10))
    (clips / "d.avi").write_bytes(b"not read")
    line = ["data", "encode", str(clips), "--backbone", "tiny_wan", "--caption", "grey", "--out", str(tmp_path / "out")]
    assert main([*line, "--buckets", "9x64x32", "17x32x64", "9x32x64", "9x32x32", "17x16x16"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("warning: not taken: 1 .avi: convert them")
    assert "17x16x16: no clip is of this size" in said and "9x32x64: no clip is of this size" in said
    parts = [LatentFolder(tmp_path / "out" / name) for name in ("9x64x32", "17x32x64", "9x32x32")]
    data = Mixed(parts, workers=0).load(BACKBONE, None, device=CPU)
    assert [tuple(data.batch([k]).x.shape[1:]) for k in range(len(data))] == [
        BACKBONE.codec(device=CPU, dtype=torch.float32).latent_shape(*size)
        for size in ((9, 64, 32), (17, 32, 64), (9, 32, 32))
    ]
    assert main([*line, "--size", "9x32x32", "--buckets", "9x64x32"]) == 2
    assert "--buckets are sizes in place of --size" in capsys.readouterr().err
