"""Which layers get adapters, and of which rank, by declaration."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_far import Far
from flowmap_lora import Lora
from flowmap_lora.start import LORA_FILE
from flowmap_wan21 import Wan21
from safetensors import safe_open

from flowmap import FlowMap
from flowmap.testing.kit_helpers import perturb

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
OWN = {
    "wan": (Wan21().tiny(), r"blocks\.\d+\.attn2\.to_[qv]", r"blocks\.1\..*", "condition_embedder."),
    "far": (Far().tiny(), r"blocks\.\d+\.ffn\..*", r"blocks\.1\..*", "condition_embedder."),
    "ltx": (Diffusers(family="ltx"), r"transformer_blocks\.\d+\.attn2\.to_[qv]", r".*\.1\.attn2\..*", "time_embed."),
}


def student(spec: Any) -> FlowMap:
    u: FlowMap = spec.build(frozenset({"student"}), **CPU)["student"]
    return u


def said(u: FlowMap, spec: Any) -> torch.Tensor:
    z, cond = spec.example()
    t = torch.tensor([0.9, 0.4])
    with torch.no_grad():
        return u(z, t, t / 2, cond)


@pytest.mark.parametrize("name", OWN)
def test_layers_and_ranks_are_those_that_are_declared(name: str, tmp_path: Path) -> None:
    spec, targets, ranked, times = OWN[name]
    lora = Lora(rank=4, alpha=8.0, targets=targets, ranks={ranked: 2})
    spec = evolve(spec, lora=lora)
    u = student(spec)
    layers = {n.removesuffix(".lora_A.weight"): p for n, p in u.trained().items() if n.endswith(".lora_A.weight")}
    chosen = {n for n in layers if not n.startswith(times)}
    assert chosen and all(re.fullmatch(targets, n) for n in chosen)
    assert {n: len(p) for n, p in layers.items()} == {n: lora.rank_of(n) for n in layers}
    assert {len(layers[n]) for n in chosen} == {2, 4}
    assert any(n.startswith(times) for n in layers), "r has to be learnt"
    scales = {layer.scaling["student"] for layer in u.modules() if "student" in getattr(layer, "scaling", {})}
    assert scales == {2.0}, "alpha / rank is one for all"
    perturb(u, 0, 0.1)
    spec.save(u, tmp_path)
    again = spec.load(tmp_path / "lora", **CPU)
    torch.testing.assert_close(said(again, spec), said(u, spec))
    torch.testing.assert_close(said(spec.load(tmp_path, **CPU), spec), said(u, spec), rtol=0, atol=2e-5)
    with safe_open(tmp_path / "lora" / LORA_FILE, framework="pt") as file:
        about = json.loads(file.metadata()["lora_adapter_metadata"])
    assert set(about["transformer.rank_pattern"].values()) == {2}
    assert set(about["transformer.alpha_pattern"].values()) == {4.0}


@pytest.mark.parametrize("name", OWN)
def test_meta_networks_are_filled_with_what_building_gives(name: str) -> None:
    spec, targets, ranked, _ = OWN[name]
    spec = evolve(spec, lora=Lora(rank=4, alpha=8.0, targets=targets, ranks={ranked: 2}))
    made, roles = {}, frozenset({"student"})
    hollow = spec.build(roles, device=torch.device("meta"), dtype=torch.float32)
    spec.fill(hollow, lambda p, rows: made.update({id(p): rows(slice(None))}), dtype=torch.float32)
    wanted = student(spec).trained()
    assert wanted and all(torch.equal(made[id(p)], wanted[n]) for n, p in hollow["student"].trained().items())


WRONG = {
    "targets": ({"targets": "attn("}, r"Lora.targets = 'attn\(': must be a regular expression: missing \)"),
    "ranks": ({"ranks": {".*": 0}}, r"Lora.ranks\['\.\*'\] = 0: must be an integer >= 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_declaration_that_cannot_be_is_said(case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        Lora(**given)  # type: ignore[arg-type]


def test_an_expression_that_names_nothing_is_said() -> None:
    for given in ({"targets": r"blocks\.\d+\.to_q"}, {"ranks": {r"blocks\.\d+\.to_q": 2}}):
        with pytest.raises(ValueError, match=r"no linear layer of \w+ has such a name; there are .* more"):
            student(evolve(Wan21().tiny(), lora=Lora(rank=4, **given)))  # type: ignore[arg-type]
