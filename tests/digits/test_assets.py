"""The bundled pipeline is what the code that made it makes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import torch
from diffusers import WanPipeline
from flowmap_digits import TINY_WAN

from flowmap.times import euler_grid

CODE = Path(__file__).parents[2] / "recipes" / "tiny_wan_assets.py"


def test_scheduler_and_index_are_what_the_recipe_makes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("tiny_wan_assets", CODE)
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    code.make_pipeline(tmp_path)
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        made, bundled = (json.loads((folder / name).read_text()) for folder in (tmp_path / "tiny_wan", Path(TINY_WAN)))
        assert {**made, "_diffusers_version": bundled["_diffusers_version"]} == bundled


def test_the_bundled_teacher_is_sampled_at_equal_steps() -> None:
    scheduler = WanPipeline.from_pretrained(TINY_WAN).scheduler
    for steps in (1, 4, 7):
        scheduler.set_timesteps(steps)
        torch.testing.assert_close(scheduler.sigmas.float(), euler_grid(steps))
