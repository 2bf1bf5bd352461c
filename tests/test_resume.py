"""A resume with another recipe is refused, and says what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from attrs import evolve
from torch import nn

from flowmap import AdamW, ModuleSpec, Recipe, Stage, TensorData, distill
from flowmap.methods import anyflow, flow_matching
from flowmap.resume import differences
from flowmap.training.store.checkpoint import OtherRecipeError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, z: torch.Tensor, t: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([z, t[:, None], r[:, None]], 1))


with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    SPEC = ModuleSpec(Net(), time=None)
DATA = TensorData(torch.ones(4, 2))
RECIPE = Recipe(SPEC, (Stage(anyflow.forward(guidance=1.0), 2, batch=4),), data=DATA)
(STAGE,) = RECIPE.stages


def test_the_fields_that_differ_are_named_with_both_values(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    distill(RECIPE, out=tmp_path, device="cpu")
    said = capfd.readouterr().err
    assert "times are trained with shift 5; the backbone's own, by which its student is sampled, is 1" in said
    other = evolve(RECIPE, seed=7, stages=(evolve(STAGE, steps=3, optimizer=AdamW(lr=0.5)),), name="renamed")
    said = r"another recipe: .*\. What differs: seed was 0, is 7; stages\.0\.optimizer\.lr was [\d.e-]+, is 0\.5; "
    with pytest.raises(OtherRecipeError, match=said + r"stages\.0\.steps was 2, is 3$"):
        distill(other, out=tmp_path, device="cpu")
    assert json.loads((tmp_path / "recipe.json").read_text())["seed"] == 0


def test_what_is_of_another_kind_or_number_is_named_by_that(tmp_path: Path) -> None:
    distill(RECIPE, out=tmp_path, device="cpu")
    matching = evolve(RECIPE, stages=(evolve(STAGE, method=flow_matching.flow_matching(role="student")),))
    told = [*differences(matching, tmp_path)]
    assert 'stages.0.method.name was "anyflow_forward", is "flow_matching"' in told
    more = evolve(RECIPE, stages=(STAGE, STAGE))
    assert [*differences(more, tmp_path)] == ["stages was 1 of them, is 2 of them"]
    assert [*differences(evolve(RECIPE, name="x", save_dtype="bfloat16"), tmp_path)] == []
    assert [*differences(RECIPE, tmp_path / "nowhere")] == []


def test_a_shift_that_is_the_backbone_s_is_not_spoken_of(capfd: pytest.CaptureFixture[str]) -> None:
    own = evolve(RECIPE, stages=(evolve(STAGE, method=anyflow.forward(guidance=1.0, shift=1.0)),))
    assert RECIPE.shifts == {5.0} and own.shifts == {1.0}
    distill(own, device="cpu")
    assert "shift" not in capfd.readouterr().err
