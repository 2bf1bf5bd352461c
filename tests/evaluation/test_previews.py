"""What is shown is what was made."""

from __future__ import annotations

import math
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import Tensor

from flowmap.evaluation import plots, previews
from flowmap.evaluation.records import Record


def clips(count: int, frames: int = 4, height: int = 6, width: int = 10) -> Tensor:
    """Each clip of one grey, brighter from clip to clip, a shade darker every other frame."""
    level = torch.linspace(0.2, 0.8, count)[:, None] - 0.1 * (torch.arange(frames) % 2)
    return level[:, :, None, None, None].expand(count, frames, 3, height, width)


def test_a_tile_has_every_video_at_its_place() -> None:
    videos = clips(5)
    whole = previews.tile(videos, columns=3)
    assert whole.shape == (4, 3, 2 * 7, 3 * 11)
    for number, video in enumerate(videos):
        row, column = divmod(number, 3)
        assert torch.equal(whole[:, :, 7 * row : 7 * row + 6, 11 * column : 11 * column + 10], video)
    assert (whole[:, :, 7:, 22:] == previews.EDGE).all()


def test_a_tile_is_about_square() -> None:
    assert previews.tile(clips(9)).shape == (4, 3, 3 * 7, 3 * 11)


@pytest.mark.usefixtures("pictures_as_for_users")
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_can_be_read_back(suffix: str, tmp_path: Path) -> None:
    video = clips(1)[0]
    previews.write_video(video, tmp_path / f"v{suffix}")
    plugin = "pyav" if suffix == ".mp4" else "pillow"
    frames = iio.imread(tmp_path / f"v{suffix}", plugin=plugin)
    assert frames.shape[0] >= 4 and frames.shape[-1] == 3
    assert frames.shape[1] % 6 == frames.shape[2] % 10 == 0 and min(frames.shape[1:3]) > 200
    for frame, expected in zip(frames, video, strict=False):
        assert abs(float(frame.mean()) / 255 - float(expected.mean())) < 0.02


@pytest.mark.parametrize("fps", [6.0, 24000 / 1001])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_short_video_is_shown_again_and_again_in_even_time(count: int, fps: float, tmp_path: Path) -> None:
    """Coded once: every turn is the first one's frames, and the next frame is 1 / fps later there too."""
    video = torch.rand(count, 3, 6, 10, generator=torch.Generator().manual_seed(count))
    previews.write_video(video, tmp_path / "v.mp4", fps)
    with av.open(str(tmp_path / "v.mp4")) as file:
        found = [(float(one.pts * one.time_base), one.to_ndarray(format="rgb24")) for one in file.decode(video=0)]
    assert len(found) == count * math.ceil(3 * fps / count)
    for k, (at, frame) in enumerate(found):
        assert at == pytest.approx(k / fps, abs=1e-4)
        assert count == 1 or np.array_equal(frame, found[k % count][1])
    assert count == 1 or not np.array_equal(found[0][1], found[1][1])


def test_an_odd_video_loses_a_line_to_the_format_not_the_run(tmp_path: Path) -> None:
    previews.write_video(clips(1, height=401, width=403)[0], tmp_path / "v.mp4")
    assert iio.improps(tmp_path / "v.mp4", plugin="pyav").shape[1:3] == (400, 402)


def test_a_picture_has_the_frames_side_by_side(tmp_path: Path) -> None:
    previews.write_video(clips(1)[0], tmp_path / "v.png")
    picture = iio.imread(tmp_path / "v.png")
    height, width, _ = picture.shape
    assert width / height == pytest.approx(4 * 10 / 6)
    assert len(np.unique(picture)) == 2


def test_a_grid_shows_first_middle_and_last_frame(tmp_path: Path) -> None:
    rows = {"teacher": {1: clips(2), 4: clips(2)}, "student": {1: clips(2)}}
    previews.write_grid(rows, ["left", "right"], tmp_path / "grid.png")
    greys = set(np.unique(iio.imread(tmp_path / "grid.png")[..., 0]))
    shown = {round(255 * value) for value in (0.2, 0.1, 0.8, 0.7)}
    assert all(any(abs(int(grey) - value) <= 1 for grey in greys) for value in shown)


@pytest.mark.parametrize("metrics", [1, 2, 5])
def test_curves_are_drawn_for_any_number_of_metrics(metrics: int, tmp_path: Path) -> None:
    found = [
        Record(model, sampler, n, n, f"metric_{number}", 10.0 / n**number, 0.1, 3, better)
        for number, better in zip(range(metrics), ["lower", "higher"] * 3, strict=False)
        for model, sampler in (("teacher", "euler"), ("student", "flow_map"), ("student", "consistency"))
        for n in (1, 2, 4)
    ]
    plots.curves(found, {"metric_0": (1.0, 0.1)}, "quality: of nothing", tmp_path / "nfe.png")
    assert iio.imread(tmp_path / "nfe.png").std() > 10


def test_a_picture_of_several_samples_says_which_is_which(tmp_path: Path) -> None:
    """A row a prompt and a column a number of steps; every pixel of a sample is there, below its labels."""
    made = {n: torch.rand(2, 1, 3, 400, 500, generator=torch.Generator().manual_seed(n)) for n in (1, 4)}
    previews.write_labelled(made, ["a seven", "an eight " * 40], tmp_path / "made.png")
    page = torch.from_numpy(iio.imread(tmp_path / "made.png"))
    assert page.shape == (32 + 2 * (32 + 400), 2 * 500 + 4, 3)
    for i, n in enumerate(made):
        for k in range(2):
            top, left = 32 + k * 432 + 32, i * 504
            cell = page[top : top + 400, left : left + 500]
            wanted = (made[n][k, 0] * 255).round().to(torch.uint8).permute(1, 2, 0)
            assert torch.equal(cell, wanted)
            assert (page[top - 32 : top, :504] < 128).any(), "a prompt without its text"
        assert (page[:32, left : left + 500] < 128).any(), "a column without its number of steps"


def test_the_legend_has_every_line_of_every_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the first metric lacks one, or real videos have none of it."""
    told: list[str] = []
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda axes, lines, labels, **how: told.extend(labels))
    lines = [("teacher", "euler", "a"), ("student", "flow_map", "a"), ("student", "consistency", "b")]
    found = [
        Record(model, sampler, n, n, metric=metric, mean=1.0, std=0.1, seeds=2, better="lower")
        for model, sampler, metric in lines
        for n in (1, 4)
    ]
    plots.curves(found, {"b": (1.0, 0.1)}, "title: more", tmp_path / "nfe.png")
    assert told == [
        "teacher",
        "teacher at 4 steps",
        "student",
        "student, re-noised",
        "real videos",
        "spread over seeds",
    ]


def test_one_line_of_the_teacher_is_its_finest_and_values_below_0_have_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paired error has no value of the run that it compares with, and an unbiased distance may be below 0."""
    told: list[str] = []
    scales: list[str] = []
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda axes, lines, labels, **how: told.extend(labels))
    axes_of = plots._axes
    monkeypatch.setattr(plots, "_axes", lambda axes, *rest: (axes_of(axes, *rest), scales.append(axes.get_yscale())))
    values = {"distance": {1: 0.6, 4: 0.05, 32: 0.02, 50: -0.01}, "error": {1: 1.0, 4: 0.3, 32: 0.02}}
    found = [
        Record("teacher", "euler", n, 2 * n, metric=metric, mean=mean, std=0.01, seeds=2, better="lower")
        for metric, of in values.items()
        for n, mean in of.items()
    ]
    plots.curves(found, {}, "title: more", tmp_path / "nfe.png")
    assert [label for label in told if " at " in label] == ["teacher at 50 steps"]
    assert scales == ["symlog", "log"]
    found = [r for r in found if r.mean > 0]
    plots.curves(found, {"distance": (-0.01, 0.0)}, "title: more", tmp_path / "nfe.png")
    assert scales[2:] == ["symlog", "log"], "the level of real clips has a place, too"
