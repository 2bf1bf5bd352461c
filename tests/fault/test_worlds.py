"""R9: a run goes on with another number of ranks: the same samples and noise, and what was trained within 1e-6."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from attrs import evolve
from torch import Tensor

from flowmap import Recipe, distill
from flowmap.plugins import manager
from tests.toys import data

from .harness import KILLED, newest, recipe, run, tensors_of

BATCH = 6  # divides over 1, 2 and 3


def whole(batch: int) -> Recipe:
    """Without accumulation, whose micro-batches would be others on other ranks."""
    made = recipe()
    return evolve(made, stages=tuple(evolve(stage, batch=batch, micro=None) for stage in made.stages))


def job(out: Path, *, batch: int = BATCH) -> None:
    distill(whole(batch), data(), out=out, save_minutes=0, device="cpu", pm=manager(entry_points=False))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run(out, job=job).code == 0
    return tensors_of(newest(out))


@pytest.mark.row("R9")
@pytest.mark.parametrize("before, after", [(2, 1), (1, 2), (2, 3)])
def test_a_run_goes_on_with_another_number_of_ranks(
    before: int, after: int, tmp_path: Path, alone: dict[str, Tensor]
) -> None:
    out = tmp_path / "run"
    assert KILLED in run(out, "student.after:4", ranks=before, job=job).codes
    end = run(out, ranks=after, job=job)
    assert end.code == 0, end.said
    found = tensors_of(newest(out))
    assert found.keys() == alone.keys()
    trained = [name for name in alone if name.partition("/")[0] in ("student", "teacher", "critic", "ema")]
    assert len(trained) > 20
    for name in trained:
        torch.testing.assert_close(found[name], alone[name], rtol=0, atol=1e-6)


@pytest.mark.row("R9")
def test_a_batch_that_does_not_divide_is_a_sentence(tmp_path: Path) -> None:
    end = run(tmp_path / "run", ranks=2, job=partial(job, batch=3))
    assert set(end.codes) == {2} and "Traceback" not in end.said, end.said
    assert "batch = 3 of stage 0 does not divide over 2 processes" in end.said
