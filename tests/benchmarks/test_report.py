"""What the timed benchmarks make of their numbers; none of these tests takes the time."""

import pytest

from benchmarks import report
from benchmarks.paired import Paired


class Benchmark:
    """As much of pytest-benchmark as `Paired` uses."""

    enabled = True

    def pedantic(self, target, setup, rounds, warmup_rounds):
        for _ in range(warmup_rounds + rounds):
            arguments, options = setup()
            target(*arguments, **options)


def test_a_ratio_is_the_median_of_rounds_by_case_whatever_the_load():
    load = [1.0, 1.0, 1.0, 7.0, 7.0, 1.0, 2.0, 2.0, 3.0, 3.0, 9.0]  # of the machine, by round; the first warms up
    rounds = iter(load)
    now = [1.0]

    def reference(case):
        now[0] = next(rounds)
        return (1.0 + case) * now[0]

    found = Paired.measure(Benchmark(), lambda case: (2.0 + 4.0 * case) * now[0], reference, cases=2, repeats=5)
    assert {case: len(times) for case, times in found.subject.items()} == {0: 5, 1: 5}
    assert found.ratio == pytest.approx((2.0 + 3.0) / 2)
    assert found.summary()["rounds"] == 10
    assert found.seconds == (4.0, 11.0)  # medians by case: 2 and 6; 4 and 18


def test_one_slow_round_changes_nothing():
    slow = iter([1.0, 1.0, 50.0, 1.0])
    found = Paired.measure(Benchmark(), lambda case: 3.0, lambda case: next(slow), repeats=3)
    assert (found.ratio, found.difference) == (3.0, 2.0)


def test_the_warm_up_does_not_count():
    times = iter([100.0, 1.0, 1.0])
    found = Paired.measure(Benchmark(), lambda case: next(times), lambda case: 1.0, repeats=2)
    assert found.ratio == 1.0


def test_the_table_has_every_group():
    timing = {"reference": "b", "seconds": 0.5, "reference_seconds": 0.25, "ratio": 2.0, "ratio_quartiles": [1.9, 2.1]}
    flops = {"student forward": 1.0, "student backward": 2.0, "derivative": 1.0}
    results = {
        "step_cost": {
            **timing,
            "subject": "stage 1",
            "flops_in_calls": flops,
            "flop_ratio": 1.5,
            "calls": {"student G": 1.0},
        },
        "sampler": {**timing, "subject": "sample", "largest_difference_of_latents": 2e-6},
        "replay": {
            **timing,
            "subject": "a rollout",
            "peak_bytes": 2_000_000,
            "reference_peak_bytes": 8_000_000,
            "peak_ratio": 0.25,
            "flop_ratio": 1.33,
        },
        "history": {**timing, "subject": "extend"},
        "import_time": {**timing, "subject": "import", "seconds_over_torch": 0.25},
    }
    groups = {name: {"hardware": report.hardware(), "note": "", "results": [r]} for name, r in results.items()}
    text = report.table(groups)
    assert set(groups) == set(report.GROUPS)
    assert "| stage 1 | b | 500.0 | 2.00 (1.90 to 2.10) |" in text
    assert "| stage 1 | 3.00 |  | 1.00 |  |  |  | 4.00 | 1.50 |" in text
    assert "| a rollout | 2.0 | 8.0 | 0.25 | 1.33 |" in text
    assert "`import flowmap.distill` takes 0.25 s over torch alone" in text and "2e-06" in text
