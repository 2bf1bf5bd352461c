"""What would make a plan fit: every change is planned again, and told with what it gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias, get_args

import attrs
from attrs import evolve, frozen

from ..data.sized import Sized
from ..recipe import Recipe, Stage
from ..recomputing import Offload
from ..training.ranks.context_groups import unsplit
from ..training.ranks.offload import stays
from .plan import RESERVE, Machine, Plan, StagePlan, plan
from .trace import replaced

HELPS = 0.95  # of what was needed beside what is held back: less of a change is not told
SPECS: Mapping[str, str] = {"backbone": "the backbone", "teacher": "Recipe.teacher", "critic": "Recipe.critic"}


@frozen
class Change:
    """what: a setting with its new value, and where it stands. The recipe and the machine with it."""

    what: str
    recipe: Recipe
    machine: Machine


@frozen
class Advice:
    """The plan with a change, or with several."""

    what: str
    before: Plan
    after: Plan


Kind: TypeAlias = Callable[[Plan], Iterator[Change]]


def advise(of: Plan) -> tuple[Advice, ...]:
    """Changes of which each lowers what a GPU needs; nothing for a plan that fits or does not run at all.

    Of each kind of change it is the mildest that fits, or else the one that lowers most. Where no kind fits alone, the
    last advice is those that help, together, as far as they are needed.
    """
    if of.fits or of.machine.gpus not in of.worlds:
        return ()
    helpful = [(kind, found) for kind in KINDS if (found := _best(kind, of)) is not None]
    alone = tuple(found for _, found in helpful)
    if any(found.after.fits for found in alone):
        return alone
    names: list[str] = []
    now = of
    for kind in [*(kind for kind, _ in helpful), *LAST]:
        if not now.fits and (found := _best(kind, now)) is not None:
            names.append(found.what)
            now = found.after
    together = Advice(", ".join(names), of, now)
    return alone if together.what in {"", *(found.what for found in alone)} else (*alone, together)


def _best(kind: Kind, of: Plan) -> Advice | None:
    """The first of `kind` that fits, or else the one that helps most; None where none does."""
    best, needed = None, RESERVE + HELPS * (of.needs - RESERVE)
    for change in kind(of):
        try:
            after = plan(change.recipe, change.machine, like=of)
        except ValueError:  # the backbone has no such network
            continue
        if after.fits:
            return Advice(change.what, of, after)
        if after.needs < needed:
            best, needed = Advice(change.what, of, after), after.needs
    return best


# ------------------------------------------------------------------ kinds of change, the mildest of each first
def _micro(of: Plan) -> Iterator[Change]:
    full = _too_full(of)
    for halvings in range(1, max((stage.samples for stage in full), default=1).bit_length()):
        fewer = {s.number: max(1, s.samples >> halvings) for s in full if s.samples > 1}
        stages = {number: evolve(of.recipe.stages[number], micro=micro) for number, micro in fewer.items()}
        by_micro = {micro: [n for n, other in fewer.items() if other == micro] for micro in fewer.values()}
        what = " and ".join(f"micro={micro} of {_named(numbers)}" for micro, numbers in by_micro.items())
        yield Change(what, _with_stages(of.recipe, stages), of.machine)


def _checkpointing(of: Plan) -> Iterator[Change]:
    yield from _specs(of, "checkpointing", lambda spec, now: "selective" if now is False else now)
    yield from _specs(of, "checkpointing", lambda spec, now: True)


def _replay(of: Plan) -> Iterator[Change]:
    stages = {}
    for stage in _too_full(of):
        method = replaced(stage.stage.method, _replayed)
        if method != stage.stage.method:
            stages[stage.number] = evolve(stage.stage, method=method)
    if stages:
        yield Change(f"replay=True of the rollout of {_named(stages)}", _with_stages(of.recipe, stages), of.machine)


def _replayed(objective: Any) -> Any:
    rollout = setting(objective, "rollout", None)
    replays = setting(rollout, "replay", True)
    return objective if replays else evolve(objective, rollout=evolve(rollout, replay=True))


def _context(of: Plan) -> Iterator[Change]:
    """On the same GPUs, or else on more: with N of them a sample there can be N times as many."""
    shared = []
    for n in (2, 4, 8):
        machine = evolve(of.machine, context=n * of.machine.context)
        if not unsplit(of.recipe, machine.context):
            shared.append(evolve(of, machine=machine))
    for one in shared:
        if of.machine.gpus in one.worlds:
            yield Change(f"--context {one.machine.context}", of.recipe, one.machine)
    for one in shared:
        yield from _larger(of, one.machine, f" --context {one.machine.context}")


def _gpus(of: Plan) -> Iterator[Change]:
    yield from _larger(of, of.machine, "")


def _larger(of: Plan, machine: Machine, more: str) -> Iterator[Change]:
    """The smallest number of GPUs that fits, or else the largest."""
    first = next((n for n in evolve(of, machine=machine).worlds if n >= of.machine.gpus), None)
    if first is None or stays(of.recipe, first):
        return
    known = plan(of.recipe, evolve(machine, gpus=first), like=of)
    gpus = known.smallest or known.worlds[-1]
    if gpus != of.machine.gpus:
        yield Change(f"--gpus {gpus}{more}", of.recipe, evolve(machine, gpus=gpus))


def _bfloat16(of: Plan) -> Iterator[Change]:
    if of.recipe.dtype == "float32":
        yield Change('dtype="bfloat16" of the recipe', evolve(of.recipe, dtype="bfloat16"), of.machine)


def _adapters(of: Plan) -> Iterator[Change]:
    yield from _specs(
        of, "lora", lambda spec, now: attrs.fields_dict(type(spec))["lora"].default if now is None else now
    )


def _offload(of: Plan) -> Iterator[Change]:
    """Of one GPU: networks in pieces stay where they are. Weights come while it computes, inputs while it waits."""
    if of.machine.gpus == 1 and of.recipe.offload != "both":
        for what in get_args(Offload) if of.recipe.offload is None else ("both",):
            yield Change(f'offload="{what}" of the recipe', evolve(of.recipe, offload=what), of.machine)


def _base(of: Plan) -> Iterator[Change]:
    """Of a base that adapters stand on; the more exact one first."""
    for bits in ("int8", "nf4"):

        def lower(spec: Any, now: Any, bits: str = bits) -> Any:
            return bits if now is None and setting(spec, "lora", None) is not None else now

        yield from _specs(of, "base", lower)


def _batch(of: Plan) -> Iterator[Change]:
    """More GPUs than the batches divide over, where they cannot share samples."""
    gpus = 2 * of.worlds[-1]
    if unsplit(of.recipe, 2) and gpus > of.machine.gpus:
        stages = {n: evolve(stage, batch=2 * stage.batch) for n, stage in enumerate(of.recipe.stages)}
        what = f"--gpus {gpus} with batches of twice as many samples, which is another training"
        yield Change(what, _with_stages(of.recipe, stages), evolve(of.machine, gpus=gpus))


def _picture(of: Plan) -> Iterator[Change]:
    data = of.recipe.data
    if isinstance(data, Sized):
        frames, channels, height, width = data.x
        smaller = frames, channels, *(max(4, side // 2 // 4 * 4) for side in (height, width))
        if smaller != data.x:
            what = f"a smaller picture, Sized(x={smaller})"
            yield Change(what, evolve(of.recipe, data=evolve(data, x=smaller)), of.machine)


KINDS: tuple[Kind, ...] = (
    *(_micro, _checkpointing, _replay, _bfloat16),  # the same numbers, or nearly
    *(_offload, _context, _gpus, _base, _adapters),
)
LAST: tuple[Kind, ...] = (_batch, _picture)
"""Tried where the others do not fit together."""


# ------------------------------------------------------------------ helpers
def setting(value: Any, name: str, otherwise: Any) -> Any:
    """Of a value that has it: a backbone, an objective, a rollout."""
    return getattr(value, name) if attrs.has(type(value)) and name in attrs.fields_dict(type(value)) else otherwise


def _too_full(of: Plan) -> list[StagePlan]:
    room = of.machine.memory - RESERVE
    return [stage for stage in of.stages if sum(stage.peak(of.machine.gpus, of.shape).values()) > room]


def _named(stages: Collection[int]) -> str:
    return f"stage{'s' if len(stages) > 1 else ''} {' and '.join(map(str, stages))}"


def _with_stages(recipe: Recipe, stages: Mapping[int, Stage]) -> Recipe:
    return evolve(recipe, stages=tuple(stages.get(n, stage) for n, stage in enumerate(recipe.stages)))


def _specs(of: Plan, name: str, change: Callable[[Any, Any], Any]) -> Iterator[Change]:
    """A setting of every spec that a trained network is built from: specs that are equal stay so, and share weights.

    change: of (the spec, its setting), the new setting.
    """
    recipe = of.recipe
    trained = [recipe.spec_of(role) for role in sorted(recipe.trains)]
    changed: dict[str, Any] = {}
    new: Any = None
    for where in SPECS:
        spec = getattr(recipe, where)
        if spec not in trained or setting(spec, name, attrs.NOTHING) is attrs.NOTHING:
            continue
        value = change(spec, getattr(spec, name))
        if value != getattr(spec, name):
            changed[where], new = evolve(spec, **{name: value}), value
    if changed:
        what = f"{name}={new!r} of {' and '.join(SPECS[where] for where in changed)}"
        yield Change(what, evolve(recipe, **changed), of.machine)
