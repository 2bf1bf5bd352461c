"""The same recipe on one, two, three and four ranks: the same parameters. One start of torchrun for each number."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from flowmap_digits import TINY_WAN
from flowmap_wan21 import Wan21
from safetensors.torch import load_file
from torch import Tensor

from flowmap import distill
from tests.distributed.cases import CASES, EVERYTHING, FOUR, SOME

ROOT = Path(__file__).parents[2]
WIDE = {"num_attention_heads": 8, "attention_head_dim": 48, "ffn_dim": 3072, "num_layers": 4}
NAMES = {2: (*EVERYTHING, *SOME), 3: ("bidirectional, adapters", "causal, whole"), 4: (*FOUR,)}


def torchrun(ranks: int, *arguments: str, worker: str = "tests/distributed/worker.py") -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    path = f"{ROOT}{os.pathsep}{ROOT / 'plugins'}"  # of this tree, whatever is installed
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    asked = [str(ROOT / worker), *arguments]
    done = subprocess.run(command + asked, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of what a number of ranks has trained, once somebody asks."""

    @lru_cache
    def run(ranks: int) -> Path:
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        large(folder)
        torchrun(ranks, str(folder), *NAMES[ranks], *([f"memory={folder}"] if ranks == 2 else []))
        return folder

    return run


def large(folder: Path) -> None:
    """A pipeline's directory with a transformer of some 20 million parameters in several files."""
    import diffusers

    shutil.copytree(TINY_WAN, folder, ignore=shutil.ignore_patterns("transformer"), dirs_exist_ok=True)
    config = {**Wan21().tiny().config, **WIDE}
    with torch.random.fork_rng(devices=[]):
        diffusers.WanTransformer3DModel(**config).save_pretrained(folder / "transformer", max_shard_size="20MB")


@lru_cache
def alone(name: str) -> Mapping[str, Tensor]:
    return {key: p.detach() for key, p in distill(CASES[name]).trained().items()}


def runs() -> list[Any]:
    slow = {4: [pytest.mark.slow]}
    return [pytest.param(ranks, name, marks=slow.get(ranks, [])) for ranks, its in NAMES.items() for name in its]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "name"), runs(), ids=lambda value: str(value))
def test_the_result_does_not_know_how_many_ranks_there_were(
    ranks: int, name: str, trained: Callable[[int], Path]
) -> None:
    one, many = alone(name), load_file(trained(ranks) / f"{name}.safetensors")
    assert one.keys() == many.keys()
    for key, value in one.items():
        torch.testing.assert_close(many[key], value, rtol=0, atol=1e-6)


def test_training_has_changed_what_is_compared() -> None:
    """By much more than the tolerance."""
    name = "bidirectional, adapters"
    student = CASES[name].backbone.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)[
        "student"
    ]
    moved = [float((alone(name)[key] - p.detach()).abs().max()) for key, p in student.trained().items()]
    assert min(moved) > 1e-4


def test_no_rank_holds_a_whole_network(trained: Callable[[int], Path]) -> None:
    """Of two ranks each has half of it, and has read the half of the files that it keeps: not twice the whole."""
    for rank in (0, 1):
        grown, size = map(int, (trained(2) / f"memory_{rank}.txt").read_text().split())
        assert size > 30e6
        assert grown < 1.3 * size, (grown, size)
