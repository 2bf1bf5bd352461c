"""A third party's `nn.Module`, through `ModuleSpec`: exported by every back end that runs without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowmap
from flowmap import FlowMap, ModuleSpec, sample
from flowmap.export.errors import LintError
from flowmap.export.spec import Target
from flowmap.plugins import installed, named

CPU = torch.device("cpu")


class Net(nn.Module):
    """A velocity of videos with a label, of nobody's family."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 16))
        self.inp, self.label, self.out = nn.Conv3d(3, 16, 3, padding=1), nn.Embedding(11, 16), nn.Conv3d(16, 3, 1)

    def forward(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        h = self.inp(z.transpose(1, 2)) + (self.embed(t[:, None]) + self.label(label))[:, :, None, None, None]
        return self.out(nn.functional.silu(h)).transpose(1, 2)


def trained() -> tuple[FlowMap, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    z, cond = torch.randn(3, 2, 3, 4, 4), {"label": torch.tensor([1, 7, 10])}
    spec = ModuleSpec(Net(), time="embed", z=z, cond=cond)
    u = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    with torch.no_grad():
        for p in u.parameters():
            p += 0.2 * torch.randn_like(p)
    return u.eval().requires_grad_(False), z, cond


@pytest.mark.parametrize(
    "to, target",
    [
        ("torch-export", Target()),
        ("onnx", Target()),
        ("aoti", Target()),
        ("tensorrt-rtx", Target("cuda", ("8.9",))),
    ],
)
def test_every_back_end(to: str, target: Target, tmp_path: Path) -> None:
    found: Any = named(installed(), "flowmap_exporters", to).available()
    if not found.ok:
        pytest.skip(found.reason)
    u, z, cond = trained()
    t, r = torch.tensor([0.9, 0.5, 0.3]), torch.tensor([0.1, 0.5, 0.0])
    assert not torch.allclose(u(z, t, r, cond), u(z, t, t, cond), atol=1e-2)  # both times matter
    report = flowmap.export(
        u, to, tmp_path / "out", example=(z, cond), sizes={"batch": (1, 2, 4)}, target=target, rollouts=(1, 3)
    )
    assert report.worst < 1e-5 and report.manifest.family == "plain"
    if target.device == "cuda":
        return
    again = flowmap.export.flow_map(tmp_path / "out")
    torch.testing.assert_close(again(z, t, r, cond), u(z, t, r, cond), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sample(again, z, cond, 4), sample(u, z, cond, 4), atol=1e-5, rtol=1e-5)


def test_one_that_engines_would_refuse(tmp_path: Path) -> None:
    u, z, cond = trained()
    forward = Net.forward
    u.net.forward = lambda z, t, label: forward(u.net, z, t, label).double().sin().float()  # type: ignore[union-attr]
    with pytest.raises(LintError, match="the graph has a float64 tensor"):
        flowmap.export(u, "torch-export", tmp_path / "out", example=(z, cond))
    assert not list(tmp_path.iterdir())
