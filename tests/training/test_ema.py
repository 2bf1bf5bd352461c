"""An average of the trained tensors: a copy until it starts, then of its decay, in float32."""

from __future__ import annotations

import torch
from torch import nn

from flowmap import Ema
from flowmap.training.ema import Average


def trained(value: float, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    return {"w": nn.Parameter(torch.full((2,), value, dtype=dtype))}


def test_it_copies_until_its_start_and_then_averages() -> None:
    average = Average.of(trained(0.0), Ema(0.9, start=2))
    seen = []
    for iteration, value in enumerate((1.0, 2.0, 3.0, 4.0)):
        average.update(trained(value), iteration)
        seen.append(round(float(average.tensors["w"][0]), 6))
    assert seen == [1.0, 2.0, 2.1, 2.29]


def test_it_is_float32_though_the_weights_are_not() -> None:
    """In bfloat16 a step of (1 - 0.999) · 0.01 of 1 is lost."""
    average = Average.of(trained(1.0, torch.bfloat16), Ema(0.999))
    assert average.tensors["w"].dtype == torch.float32
    average.update(trained(1.0078125, torch.bfloat16), 0)
    assert float(average.tensors["w"][0]) > 1.0


def test_it_is_a_copy_and_not_the_weights() -> None:
    weights = trained(1.0)
    average = Average.of(weights, Ema())
    with torch.no_grad():
        weights["w"].fill_(5.0)
    assert float(average.tensors["w"][0]) == 1.0


def test_it_takes_the_place_of_the_weights() -> None:
    weights = trained(1.0, torch.bfloat16)
    average = Average.of(trained(3.0), Ema())
    average.copy_to(weights)
    assert weights["w"].dtype == torch.bfloat16 and float(weights["w"].detach()[0]) == 3.0
