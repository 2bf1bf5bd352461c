"""Everything that trains a student, in one table: what it needs and calls, how good it is on the digits, its drift.

    python -m benchmarks.law_methods              # law_methods.md of what is in benchmarks/results; `law` writes it too
    python -m benchmarks.law_methods --count      # first: look at every method's values and count its calls, minutes

What a method needs is asked of its values: the roles that it calls and trains, whether a derivative of the network is
taken, and how, and whether its loss is a number where the data are none. Calls are counted on tiny networks. Quality is
of `law.json`, drift of `law_drift.json`; what is not there was not run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen
from flowmap_consistency import reward
from torch import Tensor

from flowmap import Batch, FlowMap, Recipe, Rng, Stage
from flowmap._types import Role, Shared
from flowmap.derivative import CentralDifference
from flowmap.method import Method
from flowmap.methods.finetune import finetune
from flowmap.objectives import Objective, equipped, taught
from flowmap.objectives.mixture import Mixture
from flowmap.plugins import collect, installed
from flowmap.rewards import Scores
from flowmap.times import Diagonal
from flowmap.training.ranks.networks import build

from . import budget, jobs
from .curves import table
from .law_lines import PRIMARY
from .law_rows import AT_SCALE, BATCH, CAUSAL, FORWARD, GUIDANCE, MODELS, ON_POLICY, ROWS, SHIFT, TEACHER, Row

RESULTS = jobs.ROOT / "benchmarks" / "results"
STEPS = (1, 4, 32)
ROUNDS = 4
CHUNKED = {"aapt", "causvid"}
"""Methods of students in chunks alone that have no row of the law."""
TITLES = {
    "aapt": "APT 2",
    "apt": "APT",
    "ayf_emd": "AYF, EMD",
    "ayf_lmd": "AYF, LMD",
    "causvid": "CausVid",
    "consistency_training": "CT",
    "esd": "ESD",
    "improved_meanflow": "improved MeanFlow",
    "lcm": "LCM",
    "lsd": "LSD",
    "phased_dmd": "Phased DMD",
    "psd": "PSD",
    "scm": "sCM",
    "scm_training": "sCT",
    "tvm": "TVM",
}
PARTS = {
    "anyflow_forward": "stage 1 of AnyFlow",
    "anyflow_on_policy": "stage 2 of AnyFlow",
    "anyflow_teacher": "the teacher, on the data, before AnyFlow",
    "apt_initialisation": "stage 1 of APT",
    "causvid_ode_init": "stage 1 of CausVid",
    "flow_matching": "trains the teacher, or a causal one",
    "rcm_warmup": "stage 1 of rCM",
    "self_forcing_ode_init": "stage 1 of Self-Forcing",
    "self_gradient_forcing_initialisation": "stage 1 of Self Gradient Forcing",
}
"""Methods of the library that make no student of their own, and so have no row: what each is."""
ABSENT, AFTER = "not run", "after distillation"


@frozen
class Level:
    """A reward of latents themselves, where nothing is to be decoded."""

    name: str = "level"
    differentiable: bool = True

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return videos.flatten(1).mean(1)


SCORES = Scores(None, ((1.0, Level()),))


def rows() -> tuple[Row, ...]:
    """Those of the law, then every other method that trains at the scale of a recipe, then what follows it."""
    have = {row.name for row in ROWS}
    others = sorted(collect(installed(), "flowmap_stages").keys() - have)
    at_scale = (
        Row(name, TITLES.get(name, name), AT_SCALE, name, CAUSAL if name in CHUNKED else TEACHER) for name in others
    )
    return (*ROWS, *at_scale, *after())


def after() -> tuple[Row, ...]:
    """Stages of a student that is distilled already."""
    common = {"shift": SHIFT, "guidance": GUIDANCE}

    def row(name: str, title: str, method: Method, optimizer: Any = FORWARD) -> Row:
        return Row(name, title, AFTER, lambda _: (Stage(method, steps=1, batch=BATCH, optimizer=optimizer),))

    on_policy = reward.on_policy(SCORES, teacher_guidance=GUIDANCE, **common)
    return (
        row("finetune", "fine-tuning", finetune(**common)),
        row("reward_nft", "MeanFlowNFT, two samples a prompt", reward.nft(SCORES, shift=SHIFT, number=2)),
        row("reward_mfa", "MFA, two samples a prompt", reward.mfa(SCORES, shift=SHIFT, number=2)),
        row("reward_on_policy", "stage 2 with rewards", on_policy, ON_POLICY),
    )


# ---------------------------------------------------------------------------- facts


def facts(row: Row, rounds: int = ROUNDS) -> dict[str, Any]:
    """What a row needs, and by stage the calls of each role on a sample in an iteration."""
    full = row.recipe()
    tiny = evolve(full, backbone=budget.small(full.backbone), teacher=budget.small(TEACHER), evaluation=None)
    costs = budget.count(tiny, 5, rounds)
    methods = [stage.method for stage in tiny.stages]
    return {
        "method": row.name,
        "title": row.title,
        "sampler": row.samplers[0],
        "chunks": row.backbone == CAUSAL,
        "after": row.form == AFTER,
        "reward": row.name.startswith("reward_"),
        "teacher": any("teacher" in method.needs for method in methods),
        "critic": any("critic" in method.trains for method in methods),
        "data": any(map(bool, _data(tiny))),
        "derivative": _derivative(methods, any(c.tangent for cost in costs for c in cost.values())),
        "calls": [
            {role: round(cost[role].total if role in cost else 0.0, 2) for role in budget.ROLES} for cost in costs
        ],
    }


def _data(tiny: Recipe) -> Iterator[bool]:
    """Of each objective, whether its loss is no number where the data are none."""
    z, cond = tiny.backbone.example(budget.DRY)
    nowhere = Batch(torch.full_like(z[:, :5], torch.nan), dict(cond), dict(tiny.backbone.null(cond)))
    nets: Mapping[Role, FlowMap] = build(tiny, torch.device("cpu"), torch.float32)
    nets = equipped(nets, tiny.equips, evolve(nowhere, x=torch.zeros_like(nowhere.x)))
    for stage in tiny.stages:
        for n, objective in enumerate(o for update in stage.method.updates for _, o in update.terms):
            loss = objective(taught(nets, objective), nowhere, Rng.seeded(0, n), Shared())
            yield not bool(loss.value.isfinite())


def _derivative(methods: Sequence[Method], tangents: bool) -> str:
    """Of the network along its path: "exact", with a tangent that goes along; "difference"; or "none"."""
    if tangents:
        return "exact"
    found = [o for m in methods for update in m.updates for _, one in update.terms for o in _parts(one)]
    off = (o for o in found if not isinstance(getattr(o, "times", None), Diagonal))
    return "difference" if any(isinstance(getattr(o, "derivative", None), CentralDifference) for o in off) else "none"


def _parts(objective: Objective) -> tuple[Objective, ...]:
    return tuple(o for _, o in objective.parts) if isinstance(objective, Mixture) else (objective,)


# ---------------------------------------------------------------------------- the table


def markdown(
    told: Sequence[Mapping[str, Any]], law: Sequence[Mapping[str, Any]], drift: Sequence[Mapping[str, Any]]
) -> str:
    """told: `facts`. law, drift: the records of law.json and law_drift.json."""
    lines = [
        "# What the library has",
        "",
        "Written by `python -m benchmarks.law_methods`. Needs: beside prompts. Calls: student / teacher / critic on a "
        "sample in an iteration at guidance 1, by stage; encoded history counts by its frames. Quality: energy "
        f"distance of latents to real clips at {', '.join(map(str, STEPS[:-1]))} and {STEPS[-1]} steps under the "
        "method's own sampler, lower is better, ± standard error, from [law.json](law.json). Drift: mean | ink / ink "
        "of the first frame − 1 | in the last chunk of videos three times as long as in training, at 4 steps, from "
        "law_drift.json; of a student that makes all frames at once there is none.",
        "",
    ]
    body = [[one["title"], _needs(one), _calls(one), *_quality(one, law), _drift(one, drift)] for one in told]
    head = ["method", "needs", "calls", *(f"{n} step{'s' * (n > 1)}" for n in STEPS), "drift"]
    parts = "; ".join(f"`{name}` ({what})" for name, what in PARTS.items())
    last = ["", f"Methods without a row, since they make no student of their own: {parts}."]
    return "\n".join([*lines, *table(head, body)]).rstrip() + "\n" + "\n".join(last) + "\n"


def _needs(one: Mapping[str, Any]) -> str:
    derivative = {"exact": "Jacobian-vector products", "difference": "a difference in t", "none": ""}[one["derivative"]]
    student = ["a student"] * one["after"] + ["a reward"] * one["reward"]
    words = [*student, *(role for role in ("teacher", "critic", "data") if one[role]), derivative]
    return ", ".join([word for word in words if word] + ["a student in chunks"] * one["chunks"]) or "nothing"


def _calls(one: Mapping[str, Any]) -> str:
    return "; ".join(" / ".join(f"{n:g}" if n else "–" for n in stage.values()) for stage in one["calls"])


def _quality(one: Mapping[str, Any], law: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    found = {
        r["steps"]: f"{r['mean']:.3f} ± {r['se']:.3f}"
        for r in law
        if (r["method"], r["sampler"], r["metric"]) == (one["method"], one["sampler"], PRIMARY)
    }
    yield from (found.get(n, ABSENT) for n in STEPS)


def _drift(one: Mapping[str, Any], drift: Sequence[Mapping[str, Any]]) -> str:
    if not one["chunks"]:
        return "–"
    names = [name for name, (_, row, stages) in MODELS.items() if row == one["method"] and stages > 1]
    some = [r for r in drift if r["method"] in names and (r["metric"], r["steps"]) == ("absolute_drift", 4)]
    last = max(some, key=lambda r: (r["longer"], r["chunk"]), default=None)
    return ABSENT if last is None else f"{100 * last['mean']:.1f} % ± {100 * last['se']:.1f}"


def write(out: Path) -> None:
    """law_methods.md under `out`, of the results there and of the facts that are committed."""
    (out / "law_methods.md").write_text(markdown(*(_read(f) for f in _files(out))))


def _files(out: Path) -> tuple[Path, Path, Path]:
    return RESULTS / "law_methods.json", out / "law.json", out / "law_drift.json"


def _read(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.law_methods", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--count", action="store_true", help="of every method, into law_methods.json")
    options = parser.parse_args(argv)
    os.environ["TQDM_DISABLE"] = "1"
    if options.count:
        found = []
        for row in rows():
            found.append(facts(row))
            print(json.dumps(found[-1]), flush=True)
        jobs.write(RESULTS / "law_methods.json", found)
    write(RESULTS)
    print((RESULTS / "law_methods.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
