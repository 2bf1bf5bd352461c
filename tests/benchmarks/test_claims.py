"""The numbers of README's benchmark section, of the law in docs/benchmarks.md and of the drift in docs/chunks.md, each
with the record it is of."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from benchmarks.curves import interval
from benchmarks.law_jobs import GROUPS
from benchmarks.law_rows import ABLATIONS, NAMES

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text().partition("## Benchmarks\n")[2].partition("\n## ")[0]
LAW = (ROOT / "docs" / "benchmarks.md").read_text().partition("## The law\n")[2].partition("\n### ")[0]
NUMBER = re.compile(r"(?<![\w.:])\d+\.\d+(?!\w|\.\d)")
"""With a decimal point, not in a name: what was measured."""


@cache
def read(file):
    return json.loads((ROOT / "benchmarks" / "results" / file).read_text())


def value(file, **key):
    """Of the one record that has the key."""
    found = read(file)
    records = found if isinstance(found, list) else found["records"]
    (one,) = (r for r in records if all(r[name] == wanted for name, wanted in key.items()))
    return one


def guided(method, steps):
    return "any_step_video.json", {"method": method, "metric": "frechet_distance", "steps": steps}


def plane(sampler, steps):
    return "any_step_2d.json", {"model": "stage 1 + 2", "sampler": sampler, "metric": "sliced_w2", "steps": steps}


def longer(steps):
    key = {"model": "student", "sampler": "flow_map", "metric": "frechet_distance", "steps": steps}
    return "tiny_wan/nfe.json", key


def features(steps, method="anyflow"):
    key = {"method": method, "metric": "feature_distance", "steps": steps}
    key |= {"sampler": "flow_map"} if method == "anyflow" else {}
    return "law.json", key


def more_data(metric, steps):
    return "law.json", {"method": "ablation_cotrain_12", "metric": metric, "steps": steps}


CLAIMS = [
    (r"features stages 1 \+ 2 improve, from (\S+) at 4 steps to (\S+) at 32", [features(4), features(32)]),
    (r"and rCM does, too, from (\S+) to (\S+)", [features(4, "rcm"), features(32, "rcm")]),
    (
        r"12 for 1 AnyFlow is at (\S+) and (\S+) in latents, 4 and 32 steps, and at (\S+) and (\S+) in features",
        [more_data(f"{of}_distance", n) for of in ("energy", "feature") for n in (4, 32)],
    ),
    (r"AnyFlow is level there from 4 to 32 steps \((\S+) and (\S+)\)", [guided("anyflow", 4), guided("anyflow", 32)]),
    (r"rCM gets worse \((\S+) to (\S+)\)", [guided("rcm", 4), guided("rcm", 32)]),
    (r"longer `tiny_wan` run .* from (\S+) at 4 steps to (\S+) at 32", [longer(4), longer(32)]),
    (r"improves with the steps from (\S+) at 4 to (\S+) at 64", [plane("flow map", 4), plane("flow map", 64)]),
    (r"re-noised get worse, from (\S+) to (\S+)", [plane("re-noise", 4), plane("re-noise", 64)]),
]
"""A sentence, whose groups are numbers, and the record of each."""


def cells(section=SECTION):
    """Of the table: (row, steps, text)."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    steps = [int(head.split()[0]) for head in rows[0][1:] if head.split()[0].isdigit()]
    return [(row[0], n, text) for row in rows[2:] for n, text in zip(steps, row[1:], strict=False)]


@pytest.mark.parametrize("section", [SECTION, LAW], ids=["README", "docs"])
def test_every_number_of_the_table_is_the_one_that_was_measured(section):
    found = read("law.json")
    by_row = {(r["title"], r["sampler"], r["steps"]): r for r in found if r["metric"] == "energy_distance"}
    assert cells(section)
    for row, steps, text in cells(section):
        title, sampler = (row, "flow_map")
        if row.endswith(", re-noised"):
            title, sampler = row.removesuffix(", re-noised"), "consistency"
        one = next(by_row[key] for s in (sampler, "consistency", "euler") if (key := (title, s, steps)) in by_row)
        assert text == f"{one['mean']:.3f} ± {one['se']:.3f}", (row, steps)


def test_the_table_says_how_many_seeds_there_are():
    seeds = {r["title"]: r["seeds"] for r in read("law.json") if r["metric"] == "energy_distance"}
    for line in SECTION.splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if (title := row[0].removesuffix(", re-noised")) in seeds:
            assert row[-1] == str(seeds[title]), row[0]


@pytest.mark.parametrize("pattern, where", CLAIMS, ids=[where[0][0] + str(k) for k, (_, where) in enumerate(CLAIMS)])
def test_every_number_of_a_sentence_is_the_one_that_was_measured(pattern, where):
    said = re.search(pattern, " ".join(SECTION.split()))
    assert said, pattern
    for text, (file, key) in zip(said.groups(), where, strict=True):
        text = text.strip(",;.")
        assert text == f"{value(file, **key)['mean']:.{len(text.partition('.')[2])}f}"


def test_no_number_stands_there_that_has_no_record():
    claimed = [n for pattern, _ in CLAIMS for n in re.search(pattern, " ".join(SECTION.split())).groups()]
    known = [text.strip(",;.") for text in claimed] + [n for *_, text in cells() for n in NUMBER.findall(text)]
    assert sorted(NUMBER.findall(SECTION)) == sorted(known)


def test_the_prose_about_the_law_has_no_number_that_was_not_measured():
    """With three decimals, each is the mean or the error of a record, of a slope or of a difference, rounded."""
    records = [r for name in ("law", "law_slopes", "law_differences") for r in read(f"{name}.json")]
    known = {f"{abs(r[what]):.3f}" for r in records for what in ("mean", "se")}
    prose = "\n".join(line for line in LAW.splitlines() if line[:1] != "|")
    said = re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)", prose)
    assert len(said) > 10 and not {*said} - known


LONG = "### Longer videos than in training\n"
DRIFT = (ROOT / "docs" / "chunks.md").read_text().partition(LONG)[2].partition("\n## ")[0]


def test_every_number_of_the_drift_in_long_videos_is_the_one_that_was_measured():
    records = [r for r in read("law_drift.json") if r["metric"] == "absolute_drift"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in DRIFT.splitlines() if line[:1] == "|"]
    assert len(rows) == 2 + len({r["method"] for r in records})
    for title, *values, seeds in rows[2:]:
        for text, (longer, steps) in zip(values, ((1, 4), (1, 32), (3, 4), (3, 32)), strict=True):
            if not text:  # of real clips, which take no steps
                continue
            wanted = {"title": title, "longer": longer, "chunk": 5 * longer - 1}
            some = [r for r in records if wanted.items() <= r.items() and r["steps"] in (0, steps)]
            assert [f"{100 * r['mean']:.1f} ± {100 * r['se']:.1f}" for r in some] == [text], (title, longer, steps)
            assert str(some[0]["seeds"]) == seeds


def test_what_is_said_of_the_gradient_through_the_history_is_what_its_intervals_say():
    """Of AnyFlow every difference is within its interval; of Self-Forcing's drift those at 32 steps alone are not."""
    found = read("law_drift_differences.json")
    assert len([r for r in found if r["method"] == "history_grad"]) == 8
    beside = [r for r in found if abs(r["mean"]) > interval(r["se"], told_apart_by(r))]
    assert not [r for r in beside if r["method"] == "history_grad"]
    assert {r["steps"] for r in beside if r["metric"] == "absolute_drift"} == {32}


def told_apart_by(difference):
    return difference["seeds"] if difference["se_of"] == "seeds" else GROUPS


STAYS = "### Where AnyFlow stays level\n"
ABLATED = (ROOT / "docs" / "benchmarks.md").read_text().partition(STAYS)[2].partition("\n#")[0]


def test_every_number_of_the_ablations_is_the_one_that_was_measured():
    key = {"sampler": "flow_map"}
    records = {(r["title"], r["metric"], r["steps"]): r for r in read("law.json") if key.items() <= r.items()}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in ABLATED.splitlines() if line[:1] == "|"]
    assert len(rows) == 2 + 1 + len(ABLATIONS)
    columns = [(metric, n) for metric in ("energy_distance", "feature_distance") for n in (4, 32)]
    for title, *cells_of in rows[2:]:
        title = NAMES["anyflow"].title if title == "none" else title
        found = [records.get((title, metric, n)) for metric, n in columns]
        assert cells_of == [f"{r['mean']:.3f} ± {r['se']:.3f}" if r else "not run" for r in found], title
