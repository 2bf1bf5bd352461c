"""The benchmark of differences, end to end at a size that proves nothing, and the distance that it judges by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from attrs import evolve

from benchmarks import finite_difference
from benchmarks.finite_difference import SMOKE, VARIANTS, Job, energy_distance, main, recipe
from flowmap import Rng
from flowmap.recipe import describe


def test_the_distance_is_by_hand_and_without_bias() -> None:
    """Of {0, 2} and {1, 4}: 2 · (1 + 4 + 1 + 2) / 4 - 2 - 3 = -1; of equal distributions zero on average."""
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [4.0]])
    assert energy_distance(x, y) == pytest.approx(-1.0)
    rng = Rng.seeded(0)
    same = torch.tensor([energy_distance(*(rng.noise_like(x.new_zeros(16, 3)) for _ in range(2))) for _ in range(200)])
    assert abs(same.mean()) < 4 * same.std() / 200**0.5
    assert energy_distance(rng.noise_like(x.new_zeros(64, 3)), 2 + rng.noise_like(x.new_zeros(64, 3))) > 0.5


def test_variants_differ_in_type_and_derivative_alone() -> None:
    told = set()
    for variant in VARIANTS:
        found, derivative = recipe(SMOKE, variant, 0), str(describe(variant.derivative))
        assert found.dtype == variant.dtype and derivative in str(describe(found))
        told.add(str(describe(evolve(found, dtype="float32"))).replace(derivative, "D"))
    assert len(told) == 1


def test_it_trains_judges_reports_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    asked = ["--smoke", "--out", str(out), "--jobs", "0", "--variants", "float32 h=0.02", "bfloat16 exact"]
    assert main(asked) == 0
    records = json.loads(out.read_text())["records"]
    assert [r["variant"] for r in records] == ["float32 h=0.02", "bfloat16 exact"]
    assert all(r["seeds"] == [0] and len(r["noise"][0]) == len(finite_difference.BANDS) for r in records)
    for band in records[0]["noise"][0]:  # rounding falls as the difference widens
        assert band["h=0.005"]["bfloat16"] > 3 * band["h=0.05"]["bfloat16"] > 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert main(asked) == 0 and "| float32 h=0.02 |" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert Job(VARIANTS[0], 0, SMOKE, tmp_path / "cache").found is None
