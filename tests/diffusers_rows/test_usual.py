"""The size and guidance of each family, against what its pipeline does where it is told nothing."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest
import torch
from flowmap_diffusers import Diffusers
from flowmap_diffusers.rows import ROWS
from torch import nn

from flowmap import ModuleSpec, VideoFolder
from flowmap.data import DataError
from flowmap.data.synth import Synthesis

DIFFUSERS = [family for family, row in ROWS.items() if row.module == "diffusers"]
FEWER = {"cosmos25": 1.0, "z_image": 1.0}
"""By how much a pipeline's own scale is below w."""
CARDS = {"wan_ti2v": (121, 704, 1280)}
"""Published for another size than the default of the class, which other networks have as well."""


@pytest.mark.parametrize("family", DIFFUSERS)
def test_size_and_guidance_are_the_pipeline_s_own(family: str) -> None:
    row = ROWS[family]
    known = signature(row.classes()[1].__call__).parameters
    assert row.size is not None
    told = dict(zip(("frames", "height", "width"), row.size, strict=True))
    told["num_frames"] = told["frames"]
    for name, value in told.items():
        if name in known and known[name].default is not None and family not in CARDS:
            assert known[name].default == value, name
    assert row.size == CARDS.get(family, row.size) and (row.size[0] == 1) == row.image
    frames, sides = row.vae
    assert (row.size[0] - 1) % frames == 0 and all(n % (sides * row.side) == 0 for n in row.size[1:])
    scale = "true_cfg_scale" if family == "qwen_image" else "guidance_scale"
    if row.guidance is not None and scale in known:
        assert known[scale].default + FEWER.get(family, 0.0) == row.guidance


def test_what_is_embedded_is_no_guidance_of_the_sampler() -> None:
    assert Diffusers(family="flux").guidance == 3.5 and Diffusers(family="flux").usual().guidance is None
    assert Diffusers(family="flux", guidance=2.0).guidance == 2.0
    assert Diffusers(family="ltx").usual().guidance == 3.0


def test_data_takes_them_where_it_is_told_nothing() -> None:
    ltx, flux = Diffusers(family="ltx"), Diffusers(family="flux")
    asked = Synthesis(("a seven",))
    assert (asked.settled(ltx).shape, asked.settled(ltx).guidance) == ((161, 512, 704), 3.0)
    assert (asked.settled(flux).shape, asked.settled(flux).guidance) == ((1, 1024, 1024), 1.0)
    assert VideoFolder("clips", width=96)._settled(ltx).size == (161, 512, 96)
    own = ModuleSpec(nn.Linear(2, 2), time=None)
    with pytest.raises(DataError, match=r"Linear says no size of its videos: give one \(Synthesis.shape, --size\)"):
        asked.settled(own)
    with pytest.raises(DataError, match="Linear says no guidance of its sampler: give one, 1 for none"):
        Synthesis(("a seven",), (9, 32, 32)).settled(own)
    with pytest.raises(DataError, match="Linear says no size of its videos, and neither does the folder: give one"):
        VideoFolder("clips").encode(own, Path("nowhere"), device=torch.device("cpu"))
