"""Quality against the number of steps of a pair of experts, beside each of them alone at all times.

    python -m benchmarks.two_experts runs/tiny_wan22_low/student --out benchmarks/results/two_experts

The pair is the student of recipes/tiny_wan22_low.py, and the prompts and metrics are that recipe's. Alone, an expert is
asked for what it was not trained on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

from flowmap import FlowMap, load
from flowmap.cli import recipes
from flowmap.evaluation import QualityCurve
from flowmap.evaluation.curve import Bench, Point
from flowmap.experts import TwoExperts
from flowmap.plugins import backbone

METRICS = ("feature_distance", "label_accuracy")


def whole(u: FlowMap) -> FlowMap:
    """An expert that may be walked along all times."""
    u.within = (0.0, 1.0)
    return u


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    curve, spec, pair = (
        recipes.load("tiny_wan22_low").evaluation,
        backbone(str(arguments.student)),
        load(arguments.student),
    )
    assert isinstance(curve, QualityCurve) and isinstance(pair, TwoExperts)
    metrics = [metric for metric in curve.metrics if metric.name in METRICS]
    rows = []
    for name, u in (("pair", pair), ("high expert alone", whole(pair.high)), ("low expert alone", whole(pair.low))):
        bench = Bench.of(curve, {"student": u}, spec)
        for steps in curve.steps:
            made = [bench.made(Point("student", "flow_map", steps, steps), seed) for seed in curve.seeds]
            for metric in metrics:
                values = [metric.measure(one) for one in made]
                row = {
                    "student": name,
                    "steps": steps,
                    "metric": metric.name,
                    "mean": mean(values),
                    "std": stdev(values),
                }
                rows.append(row)
                print(row, flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "two_experts.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
