"""What rounding makes of a derivative, measured on the network as it is, beside its true error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import field, frozen
from flowmap_consistency import lagrangian, scm
from flowmap_wan.outline import dtype_of
from flowmap_wan21 import Wan21

from flowmap import AdamW, Batch, FlowMap, Recipe, Rng, Stage, distill
from flowmap._types import Cache, Cond, Latent, Shared, Time
from flowmap.derivative import CentralDifference, Derivative, EndDifference, ForwardMode
from flowmap.methods import anyflow
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.path import expand
from flowmap.times import Triangle
from tests.toys import Toy, data

CPU = torch.device("cpu")
OFF = Triangle(0.0, 0.25)


class Rounded(FlowMap):
    """u = 2 z + 3 t + 5 r + sin z, as a network in bfloat16 would give it."""

    def __init__(self, precision: torch.dtype) -> None:
        super().__init__()
        self.kind, self.weight = precision, torch.nn.Parameter(torch.ones(()))

    @property
    def precision(self) -> torch.dtype:
        return self.kind

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        u = 2 * z + z.sin() + expand(3 * t + 5 * r, z)
        return self.weight * u.to(self.kind).float()


@frozen
class Watched:
    """A derivative that keeps what it was asked for and what it found."""

    derivative: Derivative
    seen: list[tuple[Any, ...]] = field(factory=list)

    def __call__(self, u: Any, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        self.seen.append((z, t, r, v, cond, self.derivative(u, z, t, r, v, cond)))
        return self.seen[-1][-1]


def measured(u: FlowMap, derivative: Derivative, batch: Batch, rng: Rng | None = None, *, on: bool = True) -> Any:
    shared = Shared()
    shared.measuring = on
    return FlowMapMatching(OFF, derivative)({"student": u}, batch, rng or Rng.seeded(3), shared).logs.get("rounding")


def true_share(u: FlowMap, exact: Any, watched: Watched) -> float:
    """√(Σ ‖(t - r) error‖² / Σ ‖v - u‖²) of the first derivative that was asked for."""
    z, t, r, v, cond, du = watched.seen[0]
    with torch.no_grad():
        error = expand(t - r, z) * (du - exact(z, t, r, v, cond))
        return float((error.square().sum() / (v - u(z, t, r, cond)).square().sum()).sqrt())


def clips(n: int = 64) -> Batch:
    return Batch(Rng.seeded(1).noise_like(torch.zeros(n, 2, 3, 4, 4)), {}, {})


@pytest.mark.parametrize("h", [0.005, 0.02, 0.05])
def test_it_is_the_true_error_of_a_difference_of_rounded_values(h: float) -> None:
    u, watched = Rounded(torch.bfloat16), Watched(CentralDifference(h))
    found = measured(u, watched, clips())
    wide = Rounded(torch.float32)
    true = true_share(u, lambda *asked: CentralDifference(h)(wide, *asked), watched)
    assert float(found.value.sqrt()) == pytest.approx(true, rel=0.1)


def test_it_falls_as_the_difference_widens() -> None:
    narrow, wide = (measured(Rounded(torch.bfloat16), CentralDifference(h), clips()).value.sqrt() for h in (0.01, 0.04))
    assert float(narrow / wide) == pytest.approx(4, rel=0.25)  # less at the borders, where a difference is one-sided


@pytest.mark.parametrize("derivative", [CentralDifference(0.005), CentralDifference(0.05), ForwardMode()])
def test_it_is_the_true_error_on_a_wan_transformer(derivative: Derivative) -> None:
    spec = Wan21(None, pretrained=False, lora=None, text_length=8, text_tokens=4)
    z, cond = spec.example(24)
    narrow, wide = (
        spec.build(frozenset({"student"}), device=CPU, dtype=dtype)["student"]
        for dtype in (torch.bfloat16, torch.float32)
    )
    kind: Any = type(wide.net)
    with torch.no_grad():
        for name, p in wide.trained().items():
            p.copy_(p.to(dtype_of(name, kind, torch.bfloat16)))
    watched = Watched(derivative)
    null = {name: torch.zeros_like(value[:1]) for name, value in cond.items()}
    found = measured(narrow, watched, Batch(z, cond, null))
    true = true_share(narrow, lambda *asked: derivative(wide, *asked), watched)
    assert float(found.value.sqrt()) == pytest.approx(true, rel=0.2)


def test_samples_on_the_diagonal_do_not_count() -> None:
    """They have no derivative, so neither its rounding nor what they learn is asked about."""
    u, batch, kept = Rounded(torch.bfloat16), clips(), Watched(CentralDifference())
    shared = Shared()
    shared.measuring = True
    found = FlowMapMatching(Triangle(0.5, 0.25), kept)({"student": u}, batch, Rng.seeded(3), shared).logs["rounding"]
    z, t, r, v, cond, _ = kept.seen[0]
    assert len(z) == len(batch) / 2
    with torch.no_grad():
        assert float(found.count) == pytest.approx(float((v - u(z, t, r, cond)).square().sum()), rel=1e-5)


def test_micro_batches_and_ranks_measure_the_same() -> None:
    """Sums over samples: any division of the batch gives them."""
    u, batch = Rounded(torch.bfloat16), clips(8)
    whole = measured(u, CentralDifference(), batch, Rng((3,), tuple(range(8)), 8))
    parts = [(0, 3, 5), (1, 2, 4, 6, 7)]
    found = [measured(u, CentralDifference(), Batch(batch.x[list(p)], {}, {}), Rng((3,), p, 8)) for p in parts]
    torch.testing.assert_close((found[0] + found[1]).value, whole.value)


def test_nothing_is_measured_in_float32_or_later_in_a_stage() -> None:
    assert measured(Rounded(torch.float32), CentralDifference(), clips()) is None
    assert measured(Rounded(torch.bfloat16), CentralDifference(), clips(), on=False) is None


def run(dtype: str, out: Path) -> tuple[list[str], list[dict[str, Any]]]:
    stage = Stage(anyflow.forward(drop=0.0), steps=3, batch=8, optimizer=AdamW(lr=1e-4), ema=None)
    distill(Recipe(Toy(), (stage, stage), dtype=dtype), data(16), out=out)  # type: ignore[arg-type]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return json.loads((out / "status.json").read_text())["notes"], [json.loads(line) for line in lines]


def test_a_run_says_it_as_each_stage_begins(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    notes, records = run("bfloat16", tmp_path / "narrow")
    assert len(notes) == 2
    for number, note in enumerate(notes):
        assert note.startswith(
            f"stage {number} (anyflow_forward): the student computes in bfloat16, which rounds the derivative"
        )
        assert note in capfd.readouterr().err or number
        (share,) = [r["student/rounding"] for r in records if r["stage"] == number and r["iteration"] == 0]
        assert f" by {share**0.5:.2g} of what there is to learn" in note
    assert not any("student/rounding" in r for r in records if r["iteration"])
    notes, records = run("float32", tmp_path / "wide")
    assert notes == [] and not any("student/rounding" in r for r in records)


@pytest.mark.parametrize("make", [scm.ContinuousConsistency, lagrangian.LagrangianMatching])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_other_identities_measure_it_too(make: Any, precision: torch.dtype) -> None:
    """Four times the width, a quarter of the rounding, but for what is learnt and for the borders."""
    shares = []
    for h in (0.01, 0.04):
        difference = CentralDifference(h) if make is scm.ContinuousConsistency else EndDifference(h)
        nets = {"student": Rounded(precision), "teacher": Rounded(torch.float32)}
        logs = make(derivative=difference)(nets, clips(), Rng.seeded(3), Shared(measuring=True)).logs
        shares.append(logs.get("rounding"))
    if precision == torch.float32:
        assert shares == [None, None]
    else:
        assert float((shares[0].value / shares[1].value).sqrt()) == pytest.approx(4, rel=0.3)
