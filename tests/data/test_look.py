"""A page to look at data with: it shows the samples and their captions, and asks for nothing else."""

from __future__ import annotations

import re
from base64 import b64decode
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flowmap_digits.videos import clips as clips_of_digits
from PIL import Image

from flowmap.cli import main
from flowmap.data.format import Origin
from flowmap.data.look import PAGE, _from

from .filmed import Pictures, film

CAPTION = 'a <b>soft</b> & "quiet" picture'


def digits() -> list[Pictures]:
    """What the small VAE knows: three clips [9, 32, 32, 3]."""
    videos, _ = clips_of_digits(3, 0)
    return [(video.permute(0, 2, 3, 1) * 255).byte().numpy() for video in videos]


@pytest.fixture(scope="module")
def data(tmp_path_factory: Any) -> Path:
    clips, out = tmp_path_factory.mktemp("clips"), tmp_path_factory.mktemp("data") / "out"
    one, two, three = digits()
    film(clips / "a.mp4", np.concatenate([one, two]))
    film(clips / "b.mkv", three)
    line = ["data", "encode", str(clips), "--backbone", "tiny_wan", "--size", "9x32x32", "--windows", "2"]
    assert main([*line, "--caption", CAPTION, "--out", str(out)]) == 0
    return Path(out)


def test_the_page_shows_what_was_filmed(data: Path, tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "page.html"
    assert main(["data", "check", str(data), "--backbone", "tiny_wan", "--look", str(page)]) == 0
    assert capsys.readouterr().out.endswith(f"sound\n{page}\n")
    text = page.read_text()
    rest = re.sub(r"base64,[^\"]+", "", text)
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(", rest)  # nothing is fetched
    assert unescape(text).count(CAPTION) == 3 and "<b>" not in text
    assert "sample 1: a.mp4 from frame 9 on, 16 frames a second" in text and "sample 2: b.mkv, 16" in text
    pictures = [Image.open(BytesIO(b64decode(one))) for one in re.findall(r"data:image/webp;base64,([^\"]+)", text)]
    assert [(picture.n_frames, picture.size) for picture in pictures] == [(9, (32, 32))] * 3
    right = [video[0] for video in digits()]
    off = [[float(np.abs(np.asarray(p.convert("RGB"), float) - r).mean()) for r in right] for p in pictures]
    assert [min(range(3), key=row.__getitem__) for row in off] == [0, 1, 2]


def test_rates_that_containers_round_are_shown_rounded() -> None:
    assert _from(Origin("a.mp4", 0, 24.000123)) == ": a.mp4, 24 frames a second"
    assert _from(Origin("a.mp4", 0, 30000 / 1001)) == ": a.mp4, 29.97 frames a second"


def test_the_page_is_dark_where_the_browser_is() -> None:
    assert "color-scheme: light dark" in PAGE and "#" not in PAGE.partition("<style>")[2].partition("</style>")[0]


def test_what_is_needed_for_it_is_said_before_anything_is_read(data: Path, tmp_path: Path, capsys: Any) -> None:
    for more, said in (
        (["--look", str(tmp_path / "a.html")], "give the --backbone"),
        (["--backbone", "tiny_wan", "--look", str(tmp_path / "a.png")], "must end in .html"),
        (["--backbone", "tiny_wan", "--look", str(tmp_path / "no" / "a.html")], "in a directory that is there"),
    ):
        assert main(["data", "check", str(data), *more]) == 2
        assert said in capsys.readouterr().err
