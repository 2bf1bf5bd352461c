"""Adapters that are the student's, and such as are not, whatever the student and the file are rounded to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_digits import TINY_WAN
from flowmap_wan21 import Lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import flowmap
from flowmap import Rng
from flowmap.export.errors import ParityError
from tests.export.students import CPU, F32
from tests.export.test_forms import LORA

BF16, BASE = torch.bfloat16, {"base": TINY_WAN}


def saved(dtype: torch.dtype, out: Path) -> Path:
    """A student whose weights moved by less than the rounding of the largest of them."""
    spec = evolve(LORA, lora=Lora(rank=16, alpha=16.0))
    u: Any = spec.build(frozenset({"student"}), device=CPU, dtype=dtype)["student"]
    with torch.no_grad():
        for k, (name, p) in enumerate(u.trained().items()):
            if ".lora_B" in name:
                p.copy_(5e-4 * Rng.seeded(5, k).noise_like(p))
    spec.save(u, out)
    return out


def scaled(student: Path, factor: float, layers: str = "") -> None:
    """What the file of the adapters now says, ΔW, times that; of all layers, or those with such a name."""
    file = student / "lora" / "pytorch_lora_weights.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    for name in tensors:
        if ".lora_B" in name and layers in name:
            tensors[name] *= factor
    save_file(tensors, file, metadata=metadata)


@pytest.mark.parametrize("dtype, precision", [(F32, "float32"), (F32, "bf16"), (BF16, "float32"), (BF16, "bf16")])
def test_the_right_ones_pass_and_no_others(dtype: torch.dtype, precision: Any, tmp_path: Path) -> None:
    student, out = saved(dtype, tmp_path / "student"), tmp_path / "out"
    found = flowmap.export(student, "lora", tmp_path / "right", precision=precision, options=BASE).worst
    assert found is not None and found < (1e-4 if dtype == F32 else 5e-3)
    for factor in (-1.0, -2.0, 0.0):  # negated; doubled, as this multiplies what was negated; zeroed
        scaled(student, factor)
        with pytest.raises(ParityError, match=r"is not the student: .* times what rounding explains; give the base"):
            flowmap.export(student, "lora", out, precision=precision, options=BASE)
    assert not out.exists()


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_those_of_a_fixed_number_of_steps_too(dtype: torch.dtype, tmp_path: Path) -> None:
    student = saved(dtype, tmp_path / "student")
    flowmap.export(student, "comfyui", tmp_path / "right", precision="bf16", options=BASE)
    scaled(student, 2.0, "blocks.")
    with pytest.raises(ParityError, match="is not the student"):
        flowmap.export(student, "comfyui", tmp_path / "out", precision="bf16", options=BASE)
