"""`python -m benchmarks.aapt`: what it trains, how it sums up, and that the documents have its numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from flowmap_consistency.relativistic import RelativisticAdversarial
from flowmap_far import Far

from benchmarks.aapt import FULL, SMOKE, main, recipes, summary

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "aapt.json"
NAMES = {
    "energy distance of latents": "energy_distance",
    "feature distance": "feature_distance",
    "digits read right": "label_accuracy",
    "direction read right": "direction_accuracy",
    "speed error": "speed_error",
    "variety, 1 is real": "variety",
    "absolute drift of the last chunk": "absolute_drift_last",
    "distance of its glyphs": "glyph_distance_last",
}
COLUMNS = ("before", "longer", "after", "real")


def test_it_begins_with_a_causal_model_and_its_consistency() -> None:
    made = recipes(FULL, Path("start"))
    before, after, longer = (made[name] for name in ("before", "after", "longer"))
    assert [(s.method.name, s.steps) for s in before.stages] == [("flow_matching", 500), ("consistency_training", 500)]
    assert [(s.method.name, s.steps) for s in after.stages] == [("aapt", 100)]
    assert isinstance(after.stages[0].method.updates[0].terms[0][1], RelativisticAdversarial)
    assert isinstance(after.critic, Far) and after.critic.causal_critic and after.backbone.path == "start"
    assert [(s.method.name, s.steps) for s in longer.stages] == [("consistency_training", 1000)]
    for recipe in (after, longer):
        assert recipe.stages[0].optimizer_of("student") == after.stages[0].optimizer_of("student")
        assert recipe.stages[0].batch == before.stages[0].batch == 16 and recipe.data == before.data


def test_differences_are_of_the_same_noise() -> None:
    values = {
        "before": {"a": [1.0, 3.0]},
        "longer": {"a": [0.0, 2.0]},
        "after": {"a": [2.0, 4.0]},
        "real": {"a": [0.0, 0.0]},
    }
    found = summary(values)
    assert found["after - before"]["a"] == [1.0, 0.0] and found["after - longer"]["a"] == [2.0, 0.0]
    assert found["before"]["a"] == [2.0, pytest.approx(2.0**0.5)]


def test_the_documents_have_its_numbers() -> None:
    """Every cell of the table, mean ± deviation over seeds of noise."""
    found = json.loads(RESULTS.read_text())
    assert (found["iterations"], found["longer"], found["training_seeds"]) == ([500, 500, 100], 1000, 1)
    section = (ROOT / "docs" / "benchmarks.md").read_text().partition("## APT 2\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    table = {row[0]: row[1:] for row in rows if row[0] in NAMES}
    assert set(table) == set(NAMES)
    for title, cells in table.items():
        for column, cell in zip(COLUMNS, cells, strict=True):
            mean, deviation = found["mean_and_deviation"][column][NAMES[title]]
            assert cell == f"{mean:.3f} ± {deviation:.3f}".replace("-0.000", "0.000").replace("-", "−"), (title, column)
    for said in re.findall(r"(−?\d\.\d+) ± (\d\.\d+) \(([a-z ]+)\)", section):
        name = NAMES[next(title for title in NAMES if title.startswith(said[2]))]
        mean, deviation = found["mean_and_deviation"]["after - longer"][name]
        assert (said[0], said[1]) == (f"{mean:.3f}".replace("-", "−"), f"{deviation:.3f}")


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    main(["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "aapt.json"), "--smoke"])
    found = json.loads((tmp_path / "aapt.json").read_text())
    assert found["iterations"] == [1, 1, 1] and set(found["values"]) == {"before", "after", "longer", "real"}
    assert SMOKE.seeds == tuple(found["seeds_of_noise"])
