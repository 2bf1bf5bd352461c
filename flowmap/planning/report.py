"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from .._types import Role
from .advice import Advice, setting
from .draws import DRAWS
from .plan import GIB, RESERVE, SLOWER, Machine, Plan, StagePlan

PARTS = ("student", "derivative", "guidance", "teacher", "critic", "rollout")
BELONGS = {"history": "rollout", "fine-tuned teacher": "teacher", "critic score": "critic", "critic rollout": "rollout"}
KINDS = {
    "weights": "frozen weights",
    "adapters": "trained parameters",
    "gradients": "gradients",
    "optimiser": "optimiser",
    "average": "average",
    "activations": "activations",
    "cache": "cache",
    "gathered": "put together for a call",
}


def text(plan: Plan, advice: Sequence[Advice] = ()) -> str:
    """advice: what `advise` found for this plan."""
    parts = _head(plan), _parameters(plan), _operations(plan), _memory(plan), _fit(plan, advice), _hours(plan)
    return "\n".join(chain.from_iterable(parts))


def by_part(stage: StagePlan) -> dict[str, float]:
    """Operations of forward and backward passes together, by what they are for."""
    found = dict.fromkeys(PARTS, 0.0)
    for name, cost in stage.parts.items():
        part = name.removesuffix(" forward").removesuffix(" backward")
        part = BELONGS.get(part, part)
        found[part] = found.get(part, 0.0) + cost
    return found


def _head(plan: Plan) -> Iterator[str]:
    machine = plan.machine
    yield f"plan of {plan.recipe.name or type(plan.recipe.backbone).__name__}"
    yield (
        f"on {machine.gpus} GPUs of {machine.memory / GIB:.0f} GiB, {machine.tflops:.0f} TFLOP/s at their peak, "
        f"{machine.utilisation:.0%} of it reached"
    )
    if machine.context > 1:
        yield f"{machine.context} GPUs share the tokens of a sample; what is not of tokens counts as divided too"
    yield f"frozen weights and forward passes in {plan.recipe.dtype}, what is trained in float32"
    yield "Found by running a step of each stage at its real size on tensors without data; nothing was measured."
    yield ""


def _parameters(plan: Plan) -> Iterator[str]:
    trained = ", ".join(f"{role} {count / 1e6:.1f} M" for role, count in sorted(plan.shape.trained.items()))
    yield "PARAMETERS"
    judge = f", {plan.shape.judge / 1e9:.3f} G of them for the evaluation alone" if plan.shape.judge else ""
    yield f"  frozen   {plan.shape.frozen / 1e9:.3f} G, each held once, whatever roles share it{judge}"
    yield f"  trained  {trained}"
    if len(plan.recipe.specs) > 1:
        yield from (f"  {role:8} {plan.shape.sizes[role] / 1e9:.3f} G{_from(plan, role)}" for role in plan.shape.sizes)
    yield ""


def _from(plan: Plan, role: Role) -> str:
    """Which network it is, and with which other roles it shares it."""
    spec = plan.recipe.spec_of(role)
    others = [other for other in plan.shape.sizes if other != role and plan.recipe.spec_of(other) == spec]
    return f", {spec.about().name}" + (f", built with the {' and the '.join(others)}" if others else "")


def _operations(plan: Plan) -> Iterator[str]:
    yield "OPERATIONS of an iteration on the global batch, 10^15, recomputed activations included"
    columns = [_title(stage) for stage in plan.stages]
    yield _row("", columns)
    found = [by_part(stage) for stage in plan.stages]
    for part in dict.fromkeys(part for of in found for part in of):
        if any(of.get(part) for of in found):
            yield _row(part, [_number(of.get(part, 0.0) / 1e15) for of in found])
    yield _row("in all", [_number(stage.flops / 1e15) for stage in plan.stages])
    yield _row("of these in float32", [_percent(stage.traced.single) for stage in plan.stages])
    yield _row("over plain flow matching", [_ratio(stage.ratio) for stage in plan.stages])
    yield _row("  with the reference's calls", [_ratio(stage.reference_ratio) for stage in plan.stages])
    yield f"  The mean over {DRAWS} iterations' draws of times, jumps and prefixes. Plain flow matching: of the same"
    yield "  student on the same batch. The reference, AnyFlow's code, takes a difference for every sample, where only"
    yield "  those off the diagonal need one, and rolls out again for the critic."
    yield from _scored(plan)
    yield ""


def _scored(plan: Plan) -> Iterator[str]:
    """What rewards ask for beside the networks."""
    if kinds := dict.fromkeys(what for stage in plan.stages for what in stage.scored):
        yield "  Samples of an iteration that rewards judge, which are counted alone: neither operations, memory nor"
        yield "  hours of the codec and of rewards are in this plan."
        for what in kinds:
            yield _row(what, [f"{count:.4g}" if (count := stage.scored.get(what)) else "–" for stage in plan.stages])


def _memory(plan: Plan) -> Iterator[str]:
    gpus = plan.machine.gpus
    yield (
        (
            f"MEMORY of a GPU at the fullest moment, GiB, of {gpus}, sharded by blocks"
            if gpus > 1
            else "MEMORY of the GPU at the fullest moment, GiB"
        )
        + _recomputed(plan)
    )
    peaks = [stage.peak(gpus, plan.shape) for stage in plan.stages]
    yield _row("", [_title(stage) for stage in plan.stages])
    yield _row("samples at once", [str(min(s.samples, max(1, int(s.local(gpus))))) for s in plan.stages])
    for kind, name in KINDS.items():
        if any(peak[kind] > 0.005 * GIB for peak in peaks):
            yield _row(name, [_number(peak[kind] / GIB) for peak in peaks])
    yield _row("in all", [_number(sum(peak.values()) / GIB) for peak in peaks])
    if plan.recipe.offload is not None:
        host = [stage.moment(gpus).held.get("host", 0) / GIB for stage in plan.stages]
        yield _row("and in the host's memory", [_number(h) for h in host])
    yield _row("while", [stage.moment(gpus).part for stage in plan.stages])
    judge = ", and the teacher to judge it by" if plan.recipe.evaluation is not None else ""
    end, result = plan.shape.end / GIB, plan.recipe.result
    compare = "" if plan.recipe.offload else ", and as much to compare it"
    yield f"  In the end the first GPU holds {end:.2f}: the {result} whole{compare}{judge}."
    yield f"  Beside it {RESERVE / GIB:.0f} GiB are held back for CUDA, NCCL and what an allocator loses."
    yield ""


def _fit(plan: Plan, advice: Sequence[Advice]) -> Iterator[str]:
    machine, smallest = plan.machine, plan.smallest
    batches = ", ".join(str(stage.stage.batch) for stage in plan.stages)
    if machine.gpus not in plan.worlds:
        yield f"DOES NOT RUN on {machine.gpus} GPUs: the global batches {batches} divide over {_said(plan.worlds)}"
    elif plan.fits:
        yield f"FITS: {plan.needs / GIB:.1f} of {machine.memory / GIB:.1f} GiB on each of {machine.gpus}"
    else:
        yield f"DOES NOT FIT: {plan.needs / GIB:.1f} GiB on each, which has {machine.memory / GIB:.1f}"
        if advice:
            yield "Planned again with a change: GiB on each GPU, and 10^15 operations an iteration where they differ"
            yield from (f"  {_advised(one)}" for one in advice)
        if (end := plan.shape.end + RESERVE) > machine.memory:
            yield f"The end takes {end / GIB:.1f} GiB on the first GPU, on any number of them"
    if smallest is None:
        yield f"Too much for any number of such GPUs over which the batches divide, {_said(plan.worlds)}"
    else:
        yield f"The smallest number of such GPUs that fits: {smallest}"
    yield ""


def _advised(advice: Advice) -> str:
    """What it gives: GiB on each GPU, and operations and times where they are others."""
    before, after = advice.before, advice.after
    both = list(zip(before.stages, after.stages, strict=True))
    told = [
        f"; stage {old.number} computes {new.flops / 1e15:.2f} in place of {old.flops / 1e15:.2f}"
        for old, new in both
        if abs(new.flops - old.flops) > 0.001 * old.flops
    ]
    if after.recipe.offload != before.recipe.offload:
        host = max(new.moment(after.machine.gpus).held.get("host", 0) for new in after.stages)
        told += [f"; {host / GIB:.1f} GiB in the host's memory"]
        told += [
            f"; stage {old.number} takes {_seconds(new, after.machine):.4g} s an iteration in place of "
            f"{_seconds(old, before.machine):.4g}"
            for old, new in both
        ]
    fits = ", fits" if after.fits else ""
    return f"{advice.what}: {before.needs / GIB:.1f} → {after.needs / GIB:.1f}{fits}{''.join(told)}"


def _recomputed(plan: Plan) -> str:
    """What the networks that are trained do without, of what they made."""
    found = [setting(plan.recipe.spec_of(role), "checkpointing", None) for role in sorted(plan.recipe.trains)]
    if None in found:
        return ""
    if not all(found):
        return "; nothing is recomputed"
    return "; blocks are recomputed" + (" but for their attention" if "selective" in found else "")


def _hours(plan: Plan) -> Iterator[str]:
    machine = plan.machine
    yield (
        f"HOURS at {machine.utilisation:.0%} of {machine.tflops:.0f} TFLOP/s a GPU, and of "
        f"{machine.tflops / SLOWER[machine.float32]:.0f} in float32 ({machine.float32})"
    )
    yield _row("", [_title(stage) for stage in plan.stages] + ["in all"])
    seconds = [_seconds(stage, plan.machine) for stage in plan.stages]
    hours = [stage.hours(plan.machine) for stage in plan.stages]
    yield _row("iterations", [str(stage.stage.steps) for stage in plan.stages])
    yield _row("seconds an iteration", [_number(s) for s in seconds])
    if plan.recipe.offload is not None:
        moved = [sum(stage.moved) for stage in plan.stages]
        yield _row("  GB from the host's memory", [_number(m / 1e9) for m in moved])
        yield _row(f"  at {machine.link / 1e9:.0f} GB/s, seconds", [_number(m / machine.link) for m in moved])
    yield _row("hours", [_number(h) for h in [*hours, sum(hours)]])


def _seconds(stage: StagePlan, machine: Machine) -> float:
    """Of an iteration."""
    return 3600 * stage.hours(machine) / stage.stage.steps


def _title(stage: StagePlan) -> str:
    return f"{stage.number} {stage.stage.method.name}"


def _row(name: str, cells: list[str]) -> str:
    return f"  {name:28}" + "".join(f"{cell:>26}" for cell in cells)


def _number(value: float) -> str:
    return "–" if not value else f"{value:.2f}" if value >= 0.005 else f"{value:.1e}"


def _percent(value: float) -> str:
    return "–" if not value else f"{value:.1%}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _said(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
