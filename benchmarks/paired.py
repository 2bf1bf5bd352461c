"""Side by side: every round times a reference and then a subject, so that both meet the same machine."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import cycle
from statistics import mean, median, quantiles
from typing import Any, TypeAlias

from attrs import define, field

Timed: TypeAlias = Callable[[int], float]  # the number of a case -> the seconds it took


def timed(run: Callable[[int], object]) -> Timed:
    def seconds(case: int) -> float:
        start = time.perf_counter()
        run(case)
        return time.perf_counter() - start

    return seconds


@define
class Paired:
    """Seconds by case. A case is work of one size: a median over different sizes would be that of none."""

    reference: dict[int, list[float]] = field(factory=lambda: defaultdict(list))
    subject: dict[int, list[float]] = field(factory=lambda: defaultdict(list))

    @classmethod
    def measure(cls, benchmark: Any, subject: Timed, reference: Timed, *, cases: int = 1, repeats: int = 9) -> Paired:
        """With pytest-benchmark, whose own statistics are the subject's; `--benchmark-disable` runs one round."""
        found, numbers, warm = cls(), cycle(range(cases)), list[bool]()

        def setup() -> tuple[tuple[int, float], dict[str, Any]]:
            case = next(numbers) if warm else 0
            return (case, reference(case)), {}

        def run(case: int, before: float) -> None:
            after = subject(case)
            if warm or not benchmark.enabled:
                found.reference[case].append(before)
                found.subject[case].append(after)
            warm.append(True)

        benchmark.pedantic(run, setup=setup, rounds=cases * repeats, warmup_rounds=1)
        return found

    @property
    def seconds(self) -> tuple[float, float]:
        """(reference, subject): the mean over cases of the median over repeats."""
        reference, subject = (mean(median(times) for times in side.values()) for side in (self.reference, self.subject))
        return reference, subject

    @property
    def ratio(self) -> float:
        """Subject over reference of one round, which the machine's load changes least: median, then mean over cases."""
        return self._over_rounds(lambda reference, subject: subject / reference)

    @property
    def difference(self) -> float:
        """Seconds, as `ratio`."""
        return self._over_rounds(lambda reference, subject: subject - reference)

    def summary(self) -> dict[str, Any]:
        """For `benchmark.extra_info`. quartiles: of the ratios of the rounds."""
        rounds = [s / r for case in self.subject for r, s in self._rounds(case)]
        quartiles = quantiles(rounds, n=4) if len(rounds) > 1 else rounds * 3
        reference, subject = self.seconds
        return {
            "reference_seconds": reference,
            "seconds": subject,
            "ratio": self.ratio,
            "ratio_quartiles": [quartiles[0], quartiles[2]],
            "rounds": len(rounds),
        }

    def _over_rounds(self, compare: Callable[[float, float], float]) -> float:
        return mean(median(compare(r, s) for r, s in self._rounds(case)) for case in self.subject)

    def _rounds(self, case: int) -> Iterable[tuple[float, float]]:
        return zip(self.reference[case], self.subject[case], strict=True)
