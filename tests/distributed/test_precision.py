"""Forward passes in bfloat16, weights in float32: on one rank and on two the same training, within bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowmap import distill
from tests.distributed.cases import CASES, HALF
from tests.distributed.test_parity import torchrun

TOLERANCE = {"half, adapters": 1e-4, "half, whole": 0.05, "half, whole, recomputed": 0.05}
"""Of the way that training has gone. A gradient of whole weights is rounded to 8 bits on each rank and then summed."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    torchrun(2, str(folder), *HALF)
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", HALF)
def test_two_ranks_train_what_one_trains(name: str, two: Path) -> None:
    recipe = CASES[name]
    one = {key: p.detach() for key, p in distill(recipe).trained().items()}
    assert {p.dtype for p in one.values()} == {torch.float32}
    start = recipe.backbone.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.bfloat16)["student"]
    way = norm(difference(one, {key: p.detach() for key, p in start.trained().items()}))
    assert way > 1e-3
    assert norm(difference(load_file(two / f"{name}.safetensors"), one)) < TOLERANCE[name] * way


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[Tensor]:
    assert a.keys() == b.keys()
    return [a[key] - b[key] for key in a]


def norm(tensors: list[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(tensors))
