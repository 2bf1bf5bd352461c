"""The benchmark of exports, on a tiny network: every eager case agrees, and what cannot be measured says so."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import export_latency


def test_the_eager_cases_and_the_table(tmp_path: Path) -> None:
    export_latency.main(["--tiny", "--only", "eager", "--out", str(tmp_path)])
    cases = json.loads((tmp_path / "export_latency.json").read_text())["cases"]
    assert [case["case"] for case in cases] == ["diffusers, eager", "flowmap, eager", "graph, eager"]
    for case in cases:
        assert case["outcome"] == "measured" and max(case["error_of_calls"]) < 1e-5 and case["error_of_4_steps"] < 1e-5
    table = (tmp_path / "export_latency.md").read_text()
    assert "these numbers mean nothing" in table and "| graph, eager | " in table


def test_a_case_that_there_is_no_time_or_no_library_for(tmp_path: Path) -> None:
    export_latency.main(["--tiny", "--only", "T", "--minutes", "0", "--out", str(tmp_path)])
    cases = {c["case"]: c["outcome"] for c in json.loads((tmp_path / "export_latency.json").read_text())["cases"]}
    assert cases["AOTInductor"].startswith("not measured: ")
    assert cases["TensorRT (torch-tensorrt)"].startswith("not measured: ")
