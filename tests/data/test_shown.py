"""Clips and images are what a player shows: compared with the picture that was filmed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flowmap_digits import TINY_WAN
from flowmap_wan21 import Wan21
from PIL import Image
from torch.nn import functional as F

from flowmap import VideoFolder
from flowmap.data import DataError
from flowmap.data.decode import Take, decode, frames_of
from flowmap.data.shown import Orientation, View

from .filmed import Pictures, film, scene, turn

NEAR = 3.0
"""Mean levels of 255 that halved colours cost in these pictures; the nearest fault costs more than twice that."""
STORED = {  # a, b, c, d of the matrix: how the upright picture is stored so that the matrix brings it back
    "upright": ((1, 0, 0, 1), lambda p: p),
    "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, 1, (1, 2))),
    "upside down": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2, (1, 2))),
    "counterclockwise": ((0, -1, 1, 0), lambda p: np.rot90(p, -1, (1, 2))),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, :, ::-1]),
    "mirrored upside down": ((1, 0, 0, -1), lambda p: p[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda p: p.transpose(0, 2, 1, 3)),
    "transversed": ((0, -1, -1, 0), lambda p: np.rot90(p, 2, (1, 2)).transpose(0, 2, 1, 3)),
}


def seen(path: Path, size: tuple[int, int] | None = None, take: Take = Take()) -> Pictures:  # noqa: B008
    return decode(str(path), str(path), take, size).frames.permute(0, 2, 3, 1).numpy()


def off(found: Pictures, right: Pictures) -> float:
    """Mean levels; infinite of pictures of other sizes."""
    if found.shape != right.shape:
        return float("inf")
    return float(np.abs(found.astype(float) - right.astype(float)).mean())


# ---------------------------------------------------------------- turned and mirrored
@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize("kind", ["mp4", "mov"])
def test_a_clip_is_upright_however_it_is_stored(how: str, kind: str, tmp_path: Path) -> None:
    """Colour differs at every corner, so any other of the eight orientations is far off."""
    matrix, store = STORED[how]
    right = scene()
    path = turn(film(tmp_path / f"a.{kind}", store(right)), matrix)
    assert off(seen(path), right) < NEAR
    wrong = [off(seen(path), other(right)) for name, (_, other) in STORED.items() if name != "upright"]
    assert min(wrong) > 3 * NEAR


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_an_image_is_turned_as_its_exif_says(tag: int, kind: str, tmp_path: Path) -> None:
    """Pillow's `exif_transpose` is the witness; without the tag seven of the eight are far off."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = tag
    path = tmp_path / f"a.{kind}"
    Image.fromarray(scene(1)[0]).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        right = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[None]
    assert off((frames_of(path) * 255).round().permute(0, 2, 3, 1).numpy(), right) < NEAR
    if tag > 1:
        assert off(np.asarray(Image.open(path).convert("RGB"))[None], right) > 3 * NEAR


def test_the_angle_alone_where_side_data_cannot_be_listed(tmp_path: Path, monkeypatch: Any) -> None:
    """PyAV 18 raises where a frame has a kind of side data that its own list lacks."""

    class Frame:
        rotation = -90

        @property
        def side_data(self) -> object:
            raise ValueError("31 is not a valid Type")

    class Container:
        class format:  # noqa: N801
            name = "mov"

    from flowmap.data.decode import _orientation

    assert _orientation(Container, Frame(), "a") == Orientation.of_matrix(
        (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    )


def test_a_clip_that_is_shown_askew_is_refused(tmp_path: Path) -> None:
    path = turn(film(tmp_path / "a.mp4", scene()), (1, 1, -1, 1))
    with pytest.raises(DataError, match=r"a\.mp4: it is to be shown turned, by .*only quarter turns are taken"):
        seen(path)


# ---------------------------------------------------------------- pixels that are not square
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_anamorphic_pixels_are_made_square(kind: str, tmp_path: Path) -> None:
    """A picture of 64 × 64 stored 32 wide, each pixel twice as wide as high; and again, lying on its side."""
    right = scene(3, 64, 64)
    narrow = right.reshape(3, 64, 32, 2, 3).mean(3).astype(np.uint8)
    path = film(tmp_path / f"a.{kind}", narrow, ratio=Fraction(2))
    assert off(seen(path), right) < 2 * NEAR
    assert off(seen(path, (32, 32)), right.reshape(3, 32, 2, 32, 2, 3).mean((2, 4)).astype(np.uint8)) < 2 * NEAR
    if kind == "mp4":
        matrix, store = STORED["clockwise"]
        flat = store(right).reshape(3, 64, 32, 2, 3).mean(3).astype(np.uint8)
        assert off(seen(turn(film(path, flat, ratio=Fraction(2)), matrix)), right) < 2 * NEAR


def test_an_image_has_square_pixels_whatever_its_printer_has(tmp_path: Path) -> None:
    for kind in ("jpg", "png"):
        Image.fromarray(scene(1)[0]).save(tmp_path / f"a.{kind}", dpi=(300, 150))
        assert frames_of(tmp_path / f"a.{kind}").shape == (1, 3, 64, 32)


# ---------------------------------------------------------------- colours
@pytest.mark.parametrize("matrix", [1, 5])
@pytest.mark.parametrize("full", [False, True])
def test_matrix_and_range_are_the_files(matrix: int, full: bool, tmp_path: Path) -> None:
    right = scene(2)
    assert off(seen(film(tmp_path / "a.mp4", right, matrix=matrix, full=full)), right) < NEAR


def test_a_file_without_a_matrix_has_that_of_its_size(tmp_path: Path) -> None:
    """BT.709 for high definition, BT.601 below, as players guess: the tags are written over, the pixels stay."""
    for height, width, matrix in ((64, 32, 5), (720, 1280, 1)):
        right = scene(1, height, width)
        path = film(tmp_path / "a.mkv", right, matrix=matrix, full=False)
        frames = untagged(path, tmp_path / f"{height}.mkv")
        assert off(seen(frames), right) < NEAR


def untagged(path: Path, to: Path) -> Path:
    """The same packets in a file that says nothing of colours: not the container, nor the stream."""
    import av
    from av.bitstream import BitStreamFilterContext

    with av.open(str(path)) as old, av.open(str(to), "w") as new:
        source = old.streams.video[0]
        stream = new.add_stream_from_template(source)
        stream.codec_context.colorspace = 2
        strip = BitStreamFilterContext("h264_metadata=matrix_coefficients=2", source, stream)
        for packet in old.demux(source):
            for made in strip.filter(packet if packet.dts is not None else None):
                made.stream = stream
                new.mux(made)
    return to


@pytest.mark.parametrize("fault", ["matrix", "range"])
def test_a_wrong_matrix_or_range_would_be_seen(fault: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Planted: the reader takes BT.601 for what is BT.709, or full range for what is limited."""
    from av.video.reformatter import VideoReformatter

    right = scene(2)
    path = film(tmp_path / "a.mp4", right, matrix=1, full=False)
    real = VideoReformatter.reformat

    class Wrong:
        def reformat(self, frame: Any, **told: Any) -> Any:
            planted = {"matrix": {"src_colorspace": 5}, "range": {"src_color_range": 2}}[fault]
            return real(VideoReformatter(), frame, **{**told, **planted})

    monkeypatch.setattr("av.video.reformatter.VideoReformatter", Wrong)
    assert off(seen(path), right) > NEAR


# ---------------------------------------------------------------- scaled in integers
@pytest.mark.parametrize("size", [(20, 36), (60, 90), (48, 64)])
def test_integers_scale_as_floats_do(size: tuple[int, int]) -> None:
    """To one level of 255 of what floats give when they are rounded, in pictures such as cameras make."""
    picture = torch.from_numpy(scene(1, 48, 64)[0])
    view = View.of((48, 64), Orientation(), Fraction(1), size)
    right = F.interpolate(picture.permute(2, 0, 1)[None].float(), view.scaled, mode="bicubic", antialias=True)
    difference = view.scale(picture) - right[0].permute(1, 2, 0).clamp(0, 255).round()
    assert float(difference.abs().max()) <= 1.0 and float(difference.abs().mean()) < 0.1


def test_integers_scale_photographs_as_floats_do() -> None:
    """But at edges to pure black or white: floats overshoot there, and are clamped once, not after each direction."""
    from sklearn.datasets import load_sample_images

    for photograph in load_sample_images().images:
        picture = torch.from_numpy(photograph.copy())
        for size in ((240, 416), (480, 832)):
            view = View.of((427, 640), Orientation(), Fraction(1), size)
            right = F.interpolate(picture.permute(2, 0, 1)[None].float(), view.scaled, mode="bicubic", antialias=True)
            difference = (view.scale(picture) - right[0].permute(1, 2, 0).clamp(0, 255).round()).abs()
            assert float(difference.mean()) < 0.2 and float((difference > 1).float().mean()) < 1e-3


def test_what_is_cut_is_said() -> None:
    for orientation in (Orientation(), Orientation(True, True, False)):
        stored = orientation.swap(480, 640)
        view = View.of(stored, orientation, Fraction(1), (480, 832))
        assert orientation.swap(*view.scaled) == (624, 832) and view.cut == pytest.approx(1 - 480 / 624)
        assert view.finish(torch.zeros(2, *view.scaled, 3, dtype=torch.uint8)).shape == (2, 3, 480, 832)
    assert View.of((480, 832), Orientation(), Fraction(1), (480, 832)).cut == 0.0


def test_interlaced_and_hdr_pictures_are_remarked_upon(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", scene(), options={"x264-params": "interlaced=1"})
    film(tmp_path / "b.mkv", scene(), color_trc=18, color_primaries=9, matrix=9, pix_fmt="yuv420p10le")
    film(tmp_path / "c.mp4", scene())
    said = [decode(str(tmp_path / name), "", Take(2)).remarks for name in ("a.mp4", "b.mkv", "c.mp4")]
    assert said == [("interlaced",), ("HDR",), ()]


# ---------------------------------------------------------------- in latents
def test_latents_of_phone_clips_are_those_of_upright_ones(tmp_path: Path) -> None:
    """Upright, turned, in a .mov, anamorphic, and in a tar: one picture."""
    clips, right = tmp_path / "clips", scene()
    clips.mkdir()
    film(clips / "a.mp4", right)
    matrix, store = STORED["clockwise"]
    turn(film(clips / "b.mov", store(right)), matrix)
    film(clips / "c.mkv", right.reshape(9, 32, 2, 32, 3).mean(2).astype(np.uint8), ratio=Fraction(1, 2))
    folder = VideoFolder(clips, 9, 64, 32, caption="a soft picture")
    data = folder.encode(Wan21(TINY_WAN, text_tokens=12), tmp_path / "out", device=torch.device("cpu"))
    assert data is not None
    a, b, c = data.batch([0, 1, 2]).x.double()
    for other in (b, c):
        assert float((a - other).norm() / a.norm()) < 0.06
    found = data.index.origins["shard-00000.safetensors"]
    assert [(one.clip, one.rate) for one in found] == [("a.mp4", 16.0), ("b.mov", 16.0), ("c.mkv", 16.0)]
