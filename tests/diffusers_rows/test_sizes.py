"""Networks of published size without their files, and networks that are never there as a whole."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flowmap_diffusers import Diffusers
from flowmap_diffusers.rows import ROWS
from flowmap_diffusers.sizes import PUBLISHED
from flowmap_lora import Lora
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from flowmap._types import Role
from flowmap.model import Rows
from tests.test_planted_defects import planted

META = torch.device("meta")
ROLES = frozenset[Role]({"student", "teacher", "critic"})
COUNTS = {  # of parameters, 10^9, as they were published
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": 16.4,  # called 14
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": 16.4,
    "Lightricks/LTX-Video": 1.9,
    "hunyuanvideo-community/HunyuanVideo": 12.8,
    "THUDM/CogVideoX-5b": 5.6,
    "Qwen/Qwen-Image": 20.4,
    "stepfun-ai/stepvideo-t2v": 29.3,  # called 30
}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network, and nothing that was downloaded."""

    def refused(*_: Any) -> None:
        raise AssertionError("nothing is to be asked for")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize("hub", PUBLISHED)
@pytest.mark.usefixtures("alone")
def test_a_published_network_has_its_size_without_files(hub: str) -> None:
    family = next((name for name, row in ROWS.items() if row.hub == hub), "wan_i2v")
    of = Diffusers(hub, family=family, lora=None).outline()
    assert of.path is None and set(of.row.tiny) <= set(of.config)  # nothing of the tiny one is left
    net: Any = of.build(frozenset[Role]({"teacher"}), device=META, dtype=torch.bfloat16)["teacher"]
    assert round(sum(p.numel() for p in net.parameters()) / 1e9, 1) == COUNTS[hub]


@pytest.mark.usefixtures("alone")
def test_a_size_that_is_not_known_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="'nobody/knows': the size of this network is not known without its files; "):
        Diffusers("nobody/knows", family="ltx").outline()


def test_a_directory_has_the_size_that_it_says(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    said = {**PUBLISHED["Lightricks/LTX-Video"], "num_layers": 3, "_class_name": "LTXVideoTransformer3DModel"}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(said))
    assert Diffusers(tmp_path, family="ltx").outline().config["num_layers"] == 3


WIDE: Mapping[str, Mapping[str, Any]] = {
    "ltx": {"num_attention_heads": 8, "num_layers": 12, "cross_attention_dim": 128},
    "hunyuan_video": {"num_attention_heads": 12, "num_layers": 4, "num_single_layers": 8},
    "cogvideox": {"num_attention_heads": 8, "num_layers": 12},
    "qwen_image": {"num_attention_heads": 24, "num_layers": 4},
}


def held(family: str, lora: bool) -> tuple[float, float]:
    """(the most at once, all there is), in largest tensors: a network built without numbers and filled by who keeps
    nothing."""
    wide = Diffusers(family=family, lora=Lora(4, 4.0) if lora else None, config=WIDE[family])
    wide.build(ROLES, device=META, dtype=torch.bfloat16)  # what is imported stays
    sizes: dict[int, int] = {}

    def put(p: Tensor, rows: Rows) -> None:
        assert rows(slice(0, 1)).shape[1:] == p.shape[1:]
        sizes[id(p)] = 4 * p.numel()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        nets = wide.build(ROLES, device=META, dtype=torch.bfloat16)
        wide.fill(nets, put, dtype=torch.bfloat16)
    now = most = 0
    for event in sorted(watched.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    largest = max(sizes.values())
    return most / largest, sum(sizes.values()) / largest


@pytest.mark.parametrize("lora", [True, False], ids=["adapters", "whole"])
@pytest.mark.parametrize("family", WIDE)
def test_a_network_is_never_there_as_a_whole(family: str, lora: bool) -> None:
    most, whole = held(family, lora)
    assert 0 < most < 2.5 and whole > 20


def test_weights_that_are_all_drawn_at_once_are_seen() -> None:
    now, then = "cls(drawn(plain, spec.seed), ", "cls({k: v[:] for k, v in drawn(plain, spec.seed).items()}, "
    with planted("flowmap_diffusers.build", now, then):
        most, whole = held("ltx", True)
    assert most > 0.9 * whole > 18


TRUE = """
import resource, torch
from flowmap_diffusers import Diffusers

spec = Diffusers("Lightricks/LTX-Video", family="ltx").outline()
nets = spec.build(frozenset({"student", "teacher", "critic"}), device=torch.device("meta"), dtype=torch.bfloat16)
parameters = {id(p): p for u in nets.values() for p in u.parameters()}
kept = {key: torch.zeros_like(p[: len(p) // 64], device="cpu") for key, p in parameters.items()}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.no_grad():
    spec.fill(nets, lambda p, rows: kept[id(p)].copy_(rows(slice(0, len(p) // 64))), dtype=torch.bfloat16)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ltx_at_its_size_is_filled_in_pieces() -> None:
    """1.9 G parameters with three sets of adapters, of which this process keeps a sixty-fourth."""
    done = subprocess.run([sys.executable, "-c", TRUE], capture_output=True, text=True, check=True)
    before, most = (1024 * int(word) for word in done.stdout.split())
    print(f"MiB before and most: {before >> 20} {most >> 20}")
    assert most - before < 0.1 * 2 * 1.9e9
