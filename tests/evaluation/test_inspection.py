"""What a network is, on networks that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flowmap_digits import TINY_WAN
from flowmap_wan21 import Wan21
from torch import Tensor

from flowmap import FlowMap, Rng
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.cli import main
from flowmap.evaluation import inspection
from flowmap.evaluation.inspection import (
    built_in_guidance,
    calibration,
    diagonal_error,
    inspect,
    reads_r,
    semigroup_defect,
)
from flowmap.testing import GaussianFlowMap, GuidedGaussianFlowMap

N = 16
COND = {"label": torch.ones(N, dtype=torch.float64)}
NULL = {"label": torch.zeros(1, dtype=torch.float64)}


class Velocity(FlowMap):
    """A network of one time."""

    def __init__(self, u: FlowMap) -> None:
        super().__init__()
        self.u = u

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        v: Latent = self.u(z, t, t, cond)
        return v


def noise(n: int = N, seed: int = 0) -> Tensor:
    return Rng.seeded(seed).noise_like(torch.zeros(n, 2, 3, 2, 2, dtype=torch.float64))


def times(n: int = N) -> Tensor:
    return torch.linspace(0.05, 0.95, n)


@pytest.mark.parametrize("steps", [2, 4, 32])
def test_an_exact_flow_map_has_no_semigroup_defect(steps: int) -> None:
    assert semigroup_defect(GaussianFlowMap(), noise(), {}, steps, 3.0) < 1e-6
    assert semigroup_defect(GuidedGaussianFlowMap(), noise(), COND, steps) < 1e-6


def test_of_a_velocity_the_defect_is_what_one_euler_step_misses() -> None:
    """Of N(0, c²), c = ½: one step ends at 0, two at z (½ - a / 4) with a = 2 (1 - c²) / (1 + c²): 0.2 of 0.8."""
    found = semigroup_defect(Velocity(GaussianFlowMap(0.0, 0.5)), noise(), {}, 2)
    assert found == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_grid_and_the_times_of_an_inspection_are_shifted(shift: float) -> None:
    """Two steps by s = shift / (1 + shift): the second ends at f z, f = s (1 - s a), a = v(z, s) / z."""
    asked: list[Tensor] = []

    class Asked(Velocity):
        def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
            asked.append(t)
            return super().forward(z, t, r, cond, cache)

    c, s = 0.5, shift / (1 + shift)
    f = s * (1 - s * (s - (1 - s) * c**2) / ((1 - s) ** 2 * c**2 + s**2))
    found = inspect(Asked(GaussianFlowMap(0.0, c)), noise(), {}, shift=shift, steps=(2,), x=noise(seed=1))
    assert found.defects == {2: pytest.approx(f / (1 - f), abs=1e-6)}
    drawn = 0.02 + 0.96 * Rng.seeded(0).uniform(N, noise())
    expected = shift * drawn / (1 + (shift - 1) * drawn)
    assert any(torch.allclose(t.double(), expected.double(), atol=1e-6) for t in asked if t.shape == expected.shape)


def test_whether_r_is_read() -> None:
    assert reads_r(Velocity(GaussianFlowMap()), noise(), times(), {}) == 0.0
    z, t, u = noise(), times(), GaussianFlowMap(0.0, 1.0)  # u(z, t, 0) = (t - sqrt(...)...)
    v = u(z, t, t, {})
    told = (u(z, t, torch.zeros_like(t), {}) - v).square().mean().sqrt() / v.square().mean().sqrt()
    assert reads_r(u, z, t, {}) == pytest.approx(float(told.detach()), rel=1e-9)
    assert reads_r(u, z, t, {}) > 0.1


@pytest.mark.parametrize("w", [1.0, 3.0, 4.5])
def test_guidance_that_is_built_in_is_found_exactly(w: float) -> None:
    u, teacher = GuidedGaussianFlowMap(w=w), GuidedGaussianFlowMap(w=1.0)
    assert built_in_guidance(u, teacher, noise(), times(), COND, NULL) == pytest.approx(w, abs=1e-6)
    assert diagonal_error(u, teacher, noise(), times(), COND, NULL, w) < 1e-6
    wrong = diagonal_error(GuidedGaussianFlowMap(w=w, scale=1.25), teacher, noise(), times(), COND, NULL, w)
    assert wrong == pytest.approx(0.25, abs=1e-6)


def test_the_fit_to_data_is_1_of_their_velocity_and_1_over_its_scale_of_another() -> None:
    """Four standard errors, 4000 samples; a velocity that is 1.25 times as large fits by 0.8."""
    x, fresh, t = 0.5 + 0.5 * noise(4000, 1), noise(4000, 2), times(4000)
    for scale in (1.0, 1.25):
        ratio, error = calibration(GaussianFlowMap(0.5, 0.5, scale=scale), x, fresh, t, {})
        assert abs(ratio - 1 / scale) < 4 * error < 0.02


def test_the_verdict_says_what_it_is() -> None:
    teacher = GuidedGaussianFlowMap(w=1.0)

    def told(u: FlowMap, **given: Any) -> str:
        return inspect(u, noise(), COND, null=NULL, **given).verdict()

    assert told(Velocity(teacher)).startswith("a velocity: it has one time")
    good = told(GuidedGaussianFlowMap(w=3.0), teacher=teacher)
    assert "is an exact flow map" in good and "train on from it, stage 2 as it is" in good
    assert "give a teacher" in told(GuidedGaussianFlowMap(w=3.0))
    bad = told(GuidedGaussianFlowMap(w=3.0, scale=2.0), teacher=teacher)
    assert "begin with stage 1, three quarters on the diagonal" in bad


def one_jump_for_both(*_: Any) -> float:
    """Planted: many jumps are one."""
    return 0.0


def test_a_defect_that_is_not_measured_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    u = GaussianFlowMap(scale=2.0)
    assert max(inspect(u, noise(), {}).defects.values()) > 0.1
    monkeypatch.setattr(inspection, "semigroup_defect", one_jump_for_both)
    assert max(inspect(u, noise(), {}).defects.values()) < 0.1


def test_every_number_of_steps_is_walked_once() -> None:
    """Defects by themselves are those of the inspection, which takes 1 + 2 + 4 + 8 + 32 jumps for all of them."""
    u = GaussianFlowMap(scale=2.0)
    calls: list[int] = []
    u.register_forward_hook(lambda *_: calls.append(1))
    found = inspect(u, noise(), {}, shift=3.0)
    looked = 2 + 2  # twice whether r is read
    assert len(calls) == 1 + 2 + 4 + 8 + 32 + looked
    assert found.defects == {n: semigroup_defect(u, noise(), {}, n, 3.0) for n in (2, 4, 8, 32)}


def test_the_command_tells_a_teacher_from_a_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "a two moving up slowly", "--samples", "2", "--size", "9x32x32"]
    assert main(["inspect", str(TINY_WAN), "--teacher", str(TINY_WAN), *words]) == 0
    said = capsys.readouterr().out
    assert "verdict: a velocity" in said
    assert "guidance built in, by least squares: 1.00" in said
    assert "differs from the teacher's velocity under guidance 1.00 by" in said
    spec = Wan21(str(TINY_WAN), lora=None, text_tokens=12, shift=1.0)
    u = spec.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    spec.save(u, tmp_path / "student")
    assert main(["inspect", str(tmp_path / "student"), "--teacher", str(TINY_WAN), *words]) == 0
    said = capsys.readouterr().out
    assert "verdict: it reads r" in said and "stage 2 as it is" in said


def test_what_cannot_be_asked_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none"), "--prompt", "a"]) == 2
    assert "there is no such directory" in capsys.readouterr().err
    assert main(["inspect", str(TINY_WAN)]) == 2
    assert "say what to measure it on: --prompt TEXT, or --data DIR" in capsys.readouterr().err
