"""The command for a borrowed GPU, walked on a CPU: every part, in order, each written as it ends."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu, gpu_kernels, gpu_rank

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="walks what a CPU walks")


def test_every_part_is_walked_or_left_out_with_a_reason(tmp_path):
    gpu.main(["--tiny", "--minutes", "5", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert list(record["parts"]) == [part.name for part in gpu.PARTS] and record["tiny"]
    for part in gpu.PARTS:
        found = record["parts"][part.name]
        assert (found["outcome"], "CUDA" in found.get("reason", "")) == (
            ("left out", True) if part.cuda else ("done", False)
        )
    kernels = json.loads((tmp_path / "kernels.json").read_text())["kernels"]
    assert {name for name, found in kernels.items() if found["outcome"] == "measured"} >= {"plain", "fa2"}
    assert all(max(found["errors"].values()) < 0.02 for found in kernels.values() if "errors" in found)
    assert kernels["fa3"] == {"outcome": "not there", "reason": "needs CUDA"} and kernels["cudnn"]["reason"]
    rank = json.loads((tmp_path / "rank.json").read_text())
    assert rank["largest_difference"] < 1e-6 and rank["exchange_gives_back"] and rank["tensors"] > 20
    cases = json.loads((tmp_path / "large_step.json").read_text())["cases"]
    assert cases and all(case["operations"] > 0 and case["plan_bytes"] > 0 for case in cases)
    assert json.loads((tmp_path / "export_latency.json").read_text())["cases"]


def test_a_part_that_fails_or_hangs_loses_itself_alone(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_kernels, "main", broken)
    monkeypatch.setattr(gpu, "PARTS", tuple(p for p in gpu.PARTS if p.name in ("attention kernels", "one rank")))
    monkeypatch.setattr(gpu_rank, "main", lambda arguments: None)
    found = gpu.all_parts(tmp_path, 1.0, tiny=True)
    assert found["attention kernels"] == {"outcome": "failed", "reason": "RuntimeError: no such kernel"}
    assert found["one rank"]["outcome"] == "done"
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"] == found
    monkeypatch.setattr(gpu, "SLACK", 0.0)
    hanging = gpu.Part("hanging", "timeit", 1.0, more=("-n", "1", "while True: pass"))
    monkeypatch.setattr(gpu.Part, "arguments", lambda part, *_: list(part.more))
    assert gpu.measured(hanging, tmp_path, 0.02, tiny=False)["outcome"] == "ended"


def test_without_a_gpu_it_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "--tiny runs anywhere" in capsys.readouterr().err


def test_a_kernel_that_is_wrong_is_seen(monkeypatch):
    """Planted: attention without its scale."""
    q, k, v, weights = (torch.randn(1, 2, 24, 16, generator=torch.Generator().manual_seed(n)) for n in range(4))
    right = torch.nn.functional.scaled_dot_product_attention
    exact = gpu_kernels.outputs(right, (q, k, v), weights)
    wrong = gpu_kernels.compared(
        lambda q, k, v: right(q, k, v, scale=1.0), gpu_kernels.nullcontext(), (q, k, v), weights, exact
    )
    assert min(wrong["errors"].values()) > 0.02
