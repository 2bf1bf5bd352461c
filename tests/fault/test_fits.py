"""R8 before training: a rank whose network alone fails on the first sample hangs no other."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from flowmap import distill
from flowmap.plugins import manager
from flowmap.training.ranks import fits
from flowmap.training.ranks.distributed import Distribution
from tests.toys import data

from .harness import recipe, run, status

pytestmark = pytest.mark.row("R8")
SAID = "does not take the data (TensorData: x [1, 4, 2, 2, 2], cond['text'] [1, 3]): "


def job(out: Path, shard: bool) -> None:
    fits.PATIENT = 2.0
    quiet = manager(entry_points=False)
    distill(recipe(), data(), out=out, device="cpu", pm=quiet, distribution=Distribution(shard, timeout=30.0))


@pytest.mark.parametrize("point", ["fits.before", "fits.after"])
def test_a_rank_that_fails_alone_is_heard_where_others_do_not_wait_in_the_network(point: str, tmp_path: Path) -> None:
    end = run(tmp_path / "run", f"{point}:2:raise@1", ranks=2, job=partial(job, shard=point == "fits.after"))
    assert end.codes == (2, 2), end.said
    assert end.said.count(f"{SAID}rank 1 alone: ") == end.said.count(f"RuntimeError: {point}") == 2  # both know
    assert "rank 1 alone" in status(tmp_path / "run")["reason"]
    assert end.seconds < 15


def test_one_that_fails_while_others_wait_for_it_in_the_network_ends_and_they_do(tmp_path: Path) -> None:
    end = run(tmp_path / "run", "fits.before:2:raise@1", ranks=2, job=partial(job, shard=True))
    assert all(end.codes), end.said
    assert f"{SAID}rank 1 alone: RuntimeError: fits.before" in end.said
    assert end.said.count(SAID) == 1  # the other was not there to hear it
    assert end.seconds < 15


def test_a_rank_that_is_slow_is_waited_for(tmp_path: Path) -> None:
    """Longer than one with an error would wait for it."""
    end = run(tmp_path / "run", "fits.before:1:stall4@1", ranks=2, job=partial(job, shard=False))
    assert end.codes == (0, 0), end.said


def test_what_fails_on_all_is_said_once_for_all(tmp_path: Path) -> None:
    end = run(tmp_path / "run", "fits.after:1-2:raise", ranks=2, job=partial(job, shard=True))
    assert end.codes == (2, 2), end.said
    assert "alone" not in end.said and "RuntimeError: fits.after" in end.said
    assert "2 errors" in status(tmp_path / "run")["reason"]
