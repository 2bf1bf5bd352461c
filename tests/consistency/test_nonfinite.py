"""A network that gives what is not finite stops every method, which says whose it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flowmap_consistency.consistency import consistency
from flowmap_consistency.dmd2 import dmd2
from flowmap_consistency.phased_dmd import phased_dmd
from flowmap_consistency.rcm import rcm, warmup
from flowmap_consistency.scm import scm
from flowmap_consistency.self_forcing import ode_init, self_forcing

from flowmap import AdamW, Recipe, Stage, distill
from flowmap._types import Cache, Cond, Latent, Role, Time
from flowmap.method import Method
from flowmap.methods import anyflow
from flowmap.training.loop import MAX_SKIPPED, TrainingError
from flowmap.training.store import status
from tests.consistency.judges import Named
from tests.toys import Toy, ToyFlowMap, data


def broken(role: Role, first: int | None = None) -> type[ToyFlowMap]:
    """A network that gives NaN for `role`: for the `first` samples of a call, or for all."""

    class Broken(Named):
        def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
            u = super().forward(z, t, r, cond, cache)
            where = torch.arange(len(u)) < (len(u) if first is None else first)
            return u if self.role != role else torch.where(where.reshape(-1, 1, 1, 1, 1), torch.nan, u)

    return Broken


def recipe(method: Method, network: type[ToyFlowMap], *, causal: bool = False, micro: int | None = None) -> Recipe:
    stage = Stage(method, 30, batch=4, micro=micro, optimizer=AdamW(lr=1e-3), ema=None)
    return Recipe(Toy(width=8, causal=causal, network=network), (stage,), data=data(8))


METHODS = {
    "on_policy": anyflow.on_policy(steps=(2, 4)),
    "on_policy alone": anyflow.on_policy(steps=(2, 4), cotrain=0.0),
    "forward": anyflow.forward(velocity="teacher"),
    "dmd2": dmd2(),
    "dmd2 without a GAN": dmd2(gan=0.0, gan_critic=0.0),
    "self_forcing": self_forcing(),
    "ode_init": ode_init(),
    "rcm": rcm(),
    "rcm_warmup": warmup(),
    "scm": scm(),
    "consistency": consistency(),
    "phased_dmd": phased_dmd(),
}


@pytest.mark.parametrize("name, micro", [*((name, None) for name in METHODS), ("on_policy", 1), ("scm", 1)])
def test_a_teacher_of_nan_stops_the_run_and_is_named(name: str, micro: int | None) -> None:
    made = recipe(METHODS[name], broken("teacher"), causal=name == "self_forcing", micro=micro)
    with pytest.raises(TrainingError) as error:
        distill(made, device="cpu")
    said = str(error.value)
    assert f" {MAX_SKIPPED} times in a row, by iteration " in said
    assert ", since what the teacher gave was not finite: look at the teacher" in said


def test_a_critic_of_nan_is_named_by_both() -> None:
    with pytest.raises(TrainingError, match="the critic's loss or gradient was not finite 5 times in a row"):
        distill(recipe(METHODS["on_policy"], broken("critic")), device="cpu")


@pytest.mark.parametrize("name", ["on_policy", "scm"])
def test_a_teacher_of_nan_for_some_samples_is_survived_and_told(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one sample in four, in every call."""
    distill(recipe(METHODS[name], broken("teacher", 1)), out=tmp_path, device="cpu")
    assert "teacher not finite=25%" in capsys.readouterr().err
    found = status.read(tmp_path)
    assert found.state == "finished" and found.nonfinite == {"0/student/nonfinite/teacher": 0.25}
    told = "what the teacher gave, for 0.25 of the student's samples in stage 0; they do not count"
    assert status.lines(tmp_path)["not finite 1"] == told


def test_where_all_is_finite_nothing_is_told(tmp_path: Path) -> None:
    distill(recipe(METHODS["scm"], ToyFlowMap), out=tmp_path, device="cpu")
    assert not status.read(tmp_path).nonfinite and not any("finite" in name for name in status.lines(tmp_path))
    assert "nonfinite" not in (tmp_path / "metrics.jsonl").read_text()
