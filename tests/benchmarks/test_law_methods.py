"""The table of everything that trains a student: what is asked of a method's values, and which cells are filled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import law_methods
from benchmarks.law_methods import ABSENT, PARTS, RESULTS, facts, markdown, rows
from benchmarks.law_rows import NAMES
from flowmap.plugins import collect, installed


def read(name: str) -> list[dict[str, Any]]:
    file = RESULTS / name
    found: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    return found


def test_the_committed_table_is_of_the_committed_results() -> None:
    wanted = markdown(read("law_methods.json"), read("law.json"), read("law_drift.json"))
    assert (RESULTS / "law_methods.md").read_text() == wanted, "run python -m benchmarks.law_methods"


def test_it_has_everything_that_the_library_has() -> None:
    told = [one["method"] for one in read("law_methods.json")]
    assert told == [row.name for row in rows()]
    assert {*collect(installed(), "flowmap_stages")} <= {*told}


def test_a_method_without_a_row_is_named_with_the_reason() -> None:
    told, methods = {one["method"] for one in read("law_methods.json")}, {*collect(installed(), "flowmap_methods")}
    assert methods - told == {*PARTS} and len(methods & told) > 20
    text = markdown(read("law_methods.json"), [], [])
    assert all(f"`{name}` ({what})" in text for name, what in PARTS.items())


@pytest.mark.parametrize(
    "name, expected",
    [
        ("parallel_decoding", {"teacher": True, "critic": False, "data": False, "derivative": "none", "chunks": False}),
        ("meanflow", {"teacher": False, "critic": False, "data": True, "derivative": "exact", "chunks": False}),
    ],
)
def test_what_a_method_needs_is_asked_of_its_values(name: str, expected: dict[str, Any]) -> None:
    found = facts(NAMES[name], rounds=1)
    assert {key: found[key] for key in expected} == expected
    (calls,) = found["calls"]
    assert calls["teacher"] == pytest.approx(2 * calls["student"] if expected["teacher"] else 0.0)


def test_facts_that_are_in_the_literature_s_own_tables() -> None:
    told = {one["method"]: one for one in read("law_methods.json")}
    assert {name for name, one in told.items() if one["derivative"] == "difference"} >= {"anyflow", "anyflow_causal"}
    assert {name for name, one in told.items() if one["derivative"] == "exact"} >= {"meanflow", "rcm", "scm", "esd"}
    assert not told["self_forcing"]["data"] and not told["parallel_decoding"]["data"]
    assert told["dmd2"]["critic"] and told["dmd2"]["data"]  # its discriminator looks at data
    assert not any(told[name]["data"] for name in ("reward_nft", "reward_mfa"))
    assert told["reward_nft"]["calls"] == [{"student": 2 * 20.0, "teacher": 0.0, "critic": 0.0}]


def test_cells_are_filled_once_there_are_results() -> None:
    told = [one for one in read("law_methods.json") if one["method"] in ("rcm", "anyflow_causal", "scm")]
    empty = {line.split(" | ")[0]: line for line in markdown(told, [], []).splitlines() if line.startswith("| ")}
    assert empty["| rCM"].endswith(f"{ABSENT} | {ABSENT} | {ABSENT} | – |")
    assert empty["| AnyFlow, causal"].endswith(f"{ABSENT} | {ABSENT} | {ABSENT} | {ABSENT} |")
    law = [
        {"method": "rcm", "sampler": which, "metric": metric, "steps": 4, "mean": value, "se": 0.001}
        for which, metric, value in (
            ("consistency", "energy_distance", 0.25),
            ("flow_map", "energy_distance", 0.5),  # not its own sampler
            ("consistency", "variety", 0.75),
        )
    ]
    drift = [
        {"method": name, "metric": "absolute_drift", "steps": 4, "longer": 3, "chunk": chunk, "mean": mean, "se": 0.001}
        for name, chunk, mean in (("stage_1", 14, 0.9), ("stage_2", 13, 0.8), ("stage_2", 14, 0.07))
    ]
    lines = {line.split(" | ")[0]: line for line in markdown(told, law, drift).splitlines() if line.startswith("| ")}
    assert lines["| rCM"].endswith(f"{ABSENT} | 0.250 ± 0.001 | {ABSENT} | – |")
    assert lines["| AnyFlow, causal"].endswith("7.0 % ± 0.1 |")


def test_the_law_and_its_drift_write_the_table(tmp_path: Any) -> None:
    (tmp_path / "law.json").write_text("[]")
    law_methods.write(tmp_path)
    assert (tmp_path / "law_methods.md").read_text() == markdown(read("law_methods.json"), [], [])
