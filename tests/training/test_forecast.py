"""The time that is left, by the pace of each part of a run."""

from __future__ import annotations

import pytest

from flowmap.training import forecast
from flowmap.training.forecast import Forecast, Left, clock


class Watch:
    """A clock that goes on when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch()
    monkeypatch.setattr(forecast.time, "monotonic", made)
    return made


def run(made: Forecast, watch: Watch, name: str, first: int, last: int, seconds: float) -> None:
    for done in range(first + 1, last + 1):
        watch.now += seconds
        made.at(name, done)


def test_what_is_left_is_the_units_at_their_pace_without_the_first(watch: Watch) -> None:
    made = Forecast()
    made.expect("stage 0", 20, "training")
    made.expect("stage 1", 10, "training")
    assert made.left() == Left(0.0, ("stage 0", "stage 1"))
    run(made, watch, "stage 0", 0, 1, 30.0)  # compiles
    assert made.left() == Left(19 * 30.0, ("stage 1",))
    run(made, watch, "stage 0", 1, 5, 2.0)
    assert made.left() == Left(15 * 2.0, ("stage 1",))
    run(made, watch, "stage 0", 5, 20, 2.0)
    run(made, watch, "stage 1", 0, 2, 7.0)
    assert made.left() == Left(8 * 7.0)


def test_a_part_that_has_not_begun_goes_as_fast_as_others_of_its_kind_by_weight(watch: Watch) -> None:
    made = Forecast()
    made.expect("stage 0", 4, "training", 1e15)
    made.expect("stage 1", 10, "training", 3e15)
    made.expect("previews", 40, "sampling", 4)
    made.expect("evaluation", 100, "sampling", 32)
    run(made, watch, "stage 0", 0, 3, 2.0)
    assert made.left().seconds == pytest.approx(2.0 + 10 * 6.0)
    assert made.left().uncounted == ("previews", "evaluation")
    run(made, watch, "previews", 0, 40, 0.5)
    assert made.left().seconds == pytest.approx(2.0 + 10 * 6.0 + 100 * 4.0) and not made.left().uncounted


def test_time_belongs_to_what_is_reported_and_a_resumed_part_has_no_pace_yet(watch: Watch) -> None:
    made = Forecast()
    made.expect("stage 0", 10, "training")
    made.resumed("stage 0", 4)
    assert made.left() == Left(0.0, ("stage 0",))
    run(made, watch, "stage 0", 4, 6, 3.0)
    made.expect("previews", 8, "sampling", 1)
    made.at("previews", 0)
    run(made, watch, "previews", 0, 4, 10.0)
    run(made, watch, "stage 0", 6, 7, 3.0)
    assert made.left() == Left(3 * 3.0 + 4 * 10.0)
    made.over("previews", "no such part")
    assert made.left() == Left(9.0)


def test_told() -> None:
    assert Left(425.2).told() == "7:05 left"
    assert Left(425.2, ("stage 1", "evaluation")).told() == "7:05 left, not counting stage 1, evaluation"
    assert Left(0.0, ("stage 0", "stage 1")).told() == "stage 0, stage 1 left"
    assert [clock(s) for s in (0, 59.6, 3599, 3600, 90061)] == ["0:00", "1:00", "59:59", "1:00:00", "25:01:01"]
