"""A student's network on disk: fused, rounded, and its adapters on their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_diffusers.rows import ROWS
from flowmap_lora import Lora
from safetensors.torch import load_file

from flowmap import FlowMap
from flowmap._types import Batch
from flowmap.evaluation.rounding import Probe, measure
from flowmap.testing.kit_helpers import perturb

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
LORA = Lora(rank=4, alpha=8)


def trained(spec: Diffusers) -> FlowMap:
    u = spec.build(frozenset({"student"}), **CPU)["student"]
    perturb(u, 0, 0.1)
    return u


def call(u: FlowMap, spec: Diffusers) -> torch.Tensor:
    z, cond = spec.example()
    t = torch.tensor([0.9, 0.4])
    with torch.no_grad():
        return u(z, t, t / 2, cond)


@pytest.mark.parametrize("family", ROWS)
def test_adapters_on_their_own_are_the_student(family: str, tmp_path: Path) -> None:
    spec = Diffusers(family=family, lora=LORA)
    u = trained(spec)
    spec.save(u, tmp_path)
    for where in (tmp_path / "lora", tmp_path / "lora" / "pytorch_lora_weights.safetensors"):
        assert torch.equal(call(spec.load(where, **CPU), spec), call(u, spec))
    torch.testing.assert_close(call(spec.load(tmp_path, **CPU), spec), call(u, spec), rtol=0, atol=2e-5)


def test_adapters_on_something_else_are_refused(tmp_path: Path) -> None:
    spec = Diffusers(family="ltx", lora=LORA)
    spec.save(trained(spec), tmp_path)
    file = tmp_path / "lora"
    for changes, said in (
        (
            {"seed": 1},
            r"was trained on another base, .*, and random weights \(ltx\) has \w{64}: give the one that it was",
        ),
        ({"gamma": 0.5}, r"has gamma = 0.25, and random weights \(ltx\) has 0.5"),
        ({"lora": Lora(rank=2, alpha=8)}, r"its r is 4, Diffusers.lora has 2: give the one it was made with"),
        ({"lora": None}, r"Diffusers.lora = None, but this is a LoRA file; give its rank and alpha"),
    ):
        with pytest.raises(ValueError, match=said):
            evolve(spec, **changes).load(file, **CPU)
    with pytest.raises(FileNotFoundError, match=r"neither a student's directory \(transformer/\) nor a LoRA file"):
        spec.load(tmp_path / "nothing", **CPU)


def test_a_directory_is_read_as_it_was_trained(tmp_path: Path) -> None:
    """With the weight of r and the frame rate that it says, whoever asks."""
    spec = Diffusers(family="ltx", lora=LORA, gamma=0.5, fps=12.0)
    u = trained(spec)
    spec.save(u, tmp_path)
    found = Diffusers(tmp_path, family="ltx", gamma=0.5)
    torch.testing.assert_close(call(found.load(tmp_path, **CPU), spec), call(u, spec), rtol=0, atol=2e-5)
    faster = evolve(found, fps=25.0).load(tmp_path, **CPU)
    assert not torch.allclose(call(faster, spec), call(u, spec), rtol=0, atol=1e-3)
    for other in (Diffusers(tmp_path, family="ltx"), Diffusers(family="ltx")):
        with pytest.raises(ValueError, match=r"Diffusers.gamma = 0.25: must be 0.5, as the student in .* was trained"):
            other.load(tmp_path, **CPU)


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapters", "whole"])
@pytest.mark.parametrize("family", ["ltx", "hunyuan_video"])
def test_what_bfloat16_loses_is_measured_on_the_network_that_is_saved(family: str, lora: Any, tmp_path: Path) -> None:
    spec = Diffusers(family=family, lora=lora)
    z, cond = spec.example()
    began = spec.build(frozenset({"student"}), **CPU)["student"]
    probe = Probe.of(began, "student", Batch(z, cond, None))
    u = trained(spec)
    spec.save(u, tmp_path, dtype=torch.bfloat16)
    narrow = spec.rounded(u, torch.bfloat16)
    loaded = spec.load(tmp_path, **CPU)
    torch.testing.assert_close(call(narrow, spec), call(loaded, spec))
    (file,) = (tmp_path / "transformer").glob("*.safetensors")
    for name, weight in load_file(file).items():
        embeds = any(name.startswith(f"{path}.") for path in spec.row.times)
        assert weight.dtype == (torch.float32 if embeds else torch.bfloat16), name
    lost = measure(spec, u, probe)
    assert lost.weights is not None and lost.outputs is not None and 0 < lost.outputs < 1
    off = (call(narrow, spec) - call(u, spec)).norm() / (call(u, spec) - call(began, spec)).norm()
    assert 0.2 < lost.outputs / float(off) < 5, "of other calls, on another sample"


def test_the_card_says_what_is_there(tmp_path: Path) -> None:
    spec = Diffusers(family="ltx", lora=LORA)
    spec.save(trained(spec), tmp_path)
    told = spec.contents(tmp_path)
    assert [*told] == ["transformer/", "lora/"]  # random weights have no pipeline
    assert "Diffusers(BASE, family='ltx', lora=Lora(4, 8)).load(DIR / 'lora', ...)" in told["lora/"]
