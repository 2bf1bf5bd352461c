"""Every advice of a plan is a plan: of the recipe and the machine with the change, and better."""

from __future__ import annotations

import re
import sys
from functools import cache, partial

import pytest
from attrs import evolve
from flowmap_wan21 import Lora

from flowmap import Recipe, Stage
from flowmap.cli import recipes
from flowmap.data import LatentFolder, Sized
from flowmap.methods import anyflow
from flowmap.methods.flow_matching import flow_matching
from flowmap.planning import Machine, advise, plan, text
from flowmap.planning.advice import _checkpointing, setting
from flowmap.planning.plan import GIB, RESERVE
from tests.toys import Toy

from .helpers import CONFIG, FRAMES, TEXT, spec
from .test_plan import LARGE

WIDE = {**CONFIG, "num_attention_heads": 32, "attention_head_dim": 128, "ffn_dim": 16384}  # 0.8 G parameters
PLAIN = flow_matching(role="student")
ON_POLICY = partial(anyflow.on_policy, steps=(2,), cotrain=0.0)


def recipe(of, *methods, batch=8, micro=4, side=128, text=TEXT, **more):
    """Latents so large that a sample takes gigabytes; nothing of them is there."""
    stages = tuple(Stage(method, steps=100, batch=batch, micro=micro) for method in methods or (PLAIN,))
    data = Sized(LatentFolder("nowhere"), x=(FRAMES, 16, side, side), cond={"text": text})
    return Recipe(backbone=of, stages=stages, data=data, **{"dtype": "bfloat16", **more})


def planned(of, machine):
    """The plan, with memory for all but a little of what it takes."""
    found = plan(of, machine)
    return evolve(found, machine=evolve(machine, memory=int(found.needs - 0.1 * (found.needs - RESERVE))))


def tight(of, gib):
    return evolve(of, machine=evolve(of.machine, memory=int(RESERVE + gib * GIB)))


def passing():
    """What passes takes most: a whole student, nothing recomputed, in float32."""
    return planned(recipe(spec(lora=False, checkpointing=False), dtype="float32"), Machine(gpus=2))


def lasting():
    """What lasts takes most."""
    return planned(recipe(evolve(spec(lora=False), config=WIDE), side=16, micro=1), Machine(gpus=1))


def frozen():
    """A frozen base takes most, under small adapters."""
    of = evolve(spec(checkpointing=True), lora=Lora(rank=1), config=WIDE)
    return planned(recipe(of, side=16, micro=1), Machine(gpus=1))


def inputs():
    """What a backward pass needs takes most, and where it could go to is far."""
    return planned(recipe(spec(checkpointing=False), batch=1, micro=1), Machine(gpus=1, link=1e6))


def rollout():
    """The graphs of three chunks take most."""
    of = evolve(spec(causal=True, checkpointing=False), partition=(2, 2, 1))
    return planned(recipe(of, ON_POLICY(), batch=2, micro=1), Machine(gpus=2))


@cache
def advised(of):
    before = of()
    return before, {advice.what: advice for advice in advise(before)}


def stage(of, **changes):
    return evolve(of, stages=(evolve(of.stages[0], **changes),))


def backbone(of, **changes):
    return evolve(of, backbone=evolve(of.backbone, **changes))


CASES = {
    "micro=2 of stage 0": (passing, lambda r, m: (stage(r, micro=2), m)),
    "checkpointing='selective' of the backbone": (
        passing,
        lambda r, m: (backbone(r, checkpointing="selective"), m),
    ),
    'dtype="bfloat16" of the recipe': (passing, lambda r, m: (evolve(r, dtype="bfloat16"), m)),
    "--gpus 4": (passing, lambda r, m: (r, evolve(m, gpus=4))),
    "--context 2": (passing, lambda r, m: (r, evolve(m, context=2))),
    "--gpus 2": (lasting, lambda r, m: (r, evolve(m, gpus=2))),
    f"lora={Lora()} of the backbone": (lasting, lambda r, m: (backbone(r, lora=Lora()), m)),
    'offload="weights" of the recipe': (frozen, lambda r, m: (evolve(r, offload="weights"), m)),
    'offload="inputs" of the recipe': (inputs, lambda r, m: (evolve(r, offload="inputs"), m)),
    "base='int8' of the backbone": (frozen, lambda r, m: (backbone(r, base="int8"), m)),
    "replay=True of the rollout of stage 0": (
        rollout,
        lambda r, m: (stage(r, method=ON_POLICY(replay=True)), m),
    ),
    "--gpus 2 --context 2": (lasting, lambda r, m: (r, evolve(m, gpus=2, context=2))),
}


@pytest.mark.parametrize("what", CASES)
def test_an_advice_is_the_plan_with_the_change(what):
    of, change = CASES[what]
    before, found = advised(of)
    assert what in found
    alone = plan(*change(before.recipe, before.machine))
    assert text(found[what].after) == text(alone)
    assert found[what].before is before and (alone.fits or alone.needs < before.needs)
    told = next(line for line in text(before, [*found.values()]).splitlines() if line.startswith(f"  {what}: "))
    assert f": {before.needs / GIB:.1f} → {alone.needs / GIB:.1f}" in told and (", fits" in told) == alone.fits
    costs = re.search(r"; stage 0 computes ([\d.]+) in place of ([\d.]+)", told)
    old, new = (p.stages[0].flops for p in (before, alone))
    assert (costs is not None) == (abs(new / old - 1) > 0.001)
    assert costs is None or costs.groups() == (f"{new / 1e15:.2f}", f"{old / 1e15:.2f}")
    took = re.search(r"; ([\d.]+) GiB in the host's memory; stage 0 takes (\S+) s an iteration in place of (\S+)", told)
    assert (took is not None) == ("offload" in what)
    if took is not None:
        host = alone.stages[0].moment(1).held["host"] / GIB
        times = (p.stages[0].hours(p.machine) * 3600 / 100 for p in (alone, before))
        assert took.groups() == (f"{host:.1f}", *(f"{seconds:.4g}" for seconds in times)) and host > 0.3


@pytest.mark.parametrize("of", [passing, lasting, rollout, frozen, inputs])
def test_only_what_fits_or_lowers_is_told(of):
    before, found = advised(of)
    assert len(found) > 1
    for advice in found.values():
        assert advice.after.fits or advice.after.needs - RESERVE < 0.96 * (before.needs - RESERVE)


def kinds(of, found=None):
    """The settings that are advised, by their first words. found: the advice, where it is there."""
    told = advise(of) if found is None else found
    return {re.split("[= ]", change)[0] for advice in told for change in advice.what.split(", ")}


def whole(of):
    before, found = advised(of)
    return before, found.values()


def test_nothing_is_advised_that_the_recipe_has():
    before, found = advised(rollout)
    changed = backbone(before.recipe, checkpointing=True)
    changed = stage(changed, method=ON_POLICY(replay=True))
    assert {"checkpointing", "replay"} <= kinds(before, found.values())
    assert not {"micro", "checkpointing", "replay", "dtype", "lora"} & kinds(planned(changed, before.machine))


def test_where_weights_and_inputs_have_another_place_they_are_not_advised_to_it():
    before, found = advised(frozen)
    assert "base='nf4' of the backbone" not in found, "the more exact one fits"
    low = backbone(evolve(before.recipe, offload="both"), base="nf4")
    assert not {"offload", "base"} & kinds(planned(low, before.machine))
    only = {a.what for a in advise(planned(evolve(before.recipe, offload="inputs"), before.machine))}
    assert {what for what in only if what.startswith("offload")} == {'offload="both" of the recipe'}
    assert "base" not in kinds(*whole(lasting)), "what is trained is not in few bits"
    assert "offload" not in kinds(*whole(passing)), "of networks in pieces"


def test_adapters_are_not_advised_to_adapters():
    wide = evolve(spec(), lora=Lora(rank=2048), config=WIDE)  # larger than those that are advised
    found = kinds(planned(recipe(wide, side=16, micro=1), Machine(gpus=1)))
    assert "lora" not in found and "--gpus" in found


def test_a_plan_that_fits_or_cannot_run_is_advised_nothing():
    before, _ = advised(lasting)
    assert advise(tight(before, 1000)) == () == advise(evolve(before, machine=Machine(gpus=3, memory=1)))


def test_a_critic_with_a_spec_of_its_own(monkeypatch):
    """Only what is trained is changed, and specs that are equal change together."""
    monkeypatch.setattr(sys.modules[advise.__module__], "KINDS", (_checkpointing,))
    monkeypatch.setattr(sys.modules[advise.__module__], "LAST", ())
    judge = evolve(spec(lora=False, checkpointing=False), gamma=0.5)  # the teacher's, which is frozen
    own = spec(lora=False, checkpointing=False)
    apart = recipe(spec(), ON_POLICY(), batch=1, side=16, teacher=judge, critic=own)
    found = {a.what: a.after.recipe for a in advise(tight(plan(apart, Machine(gpus=1)), -1))}
    changed = next(r for what, r in found.items() if re.fullmatch("checkpointing=.* of Recipe.critic", what))
    again = evolve(own, checkpointing=changed.critic.checkpointing)
    assert (changed.critic, changed.teacher, changed.backbone) == (again, judge, spec()) and again.checkpointing
    shared = evolve(apart, backbone=own)
    found = {a.what: a.after.recipe for a in advise(tight(plan(shared, Machine(gpus=1)), -1))}
    both = "checkpointing=.* of the backbone and Recipe.critic"
    changed = next(r for what, r in found.items() if re.fullmatch(both, what))
    again = evolve(own, checkpointing=changed.critic.checkpointing)
    assert changed.critic == changed.backbone == again != own and changed.teacher == judge


def test_changes_together_where_none_is_enough():
    before, _ = advised(passing)
    *alone, together = advise(tight(before, 0.1))
    assert not any(a.after.fits for a in alone) and together.after.fits
    assert together.what.split(", ")[:2] == ["micro=1 of stage 0", "checkpointing=True of the backbone"]
    assert together.what.startswith(", ".join(a.what for a in alone)[:30])
    assert text(together.after) == text(plan(together.after.recipe, together.after.machine))


def test_at_last_a_smaller_picture():
    before, _ = advised(passing)
    *_, last = advise(tight(before, 0.001))
    assert "Sized(x=(5, 16, 64, 64))" in last.what and last.after.recipe.data.x == (FRAMES, 16, 64, 64)


def test_batches_over_more_gpus_where_a_sample_is_of_one():
    """`Toy` is no `Splits`."""
    of = recipe(Toy(width=8192), batch=2, micro=1, side=2, text=(3,))
    of = evolve(of, data=evolve(of.data, x=(4, 2, 2, 2)))
    before = planned(of, Machine(gpus=2))
    (only,) = advise(before)
    assert only.what == "--gpus 4 with batches of twice as many samples, which is another training"
    assert [s.batch for s in only.after.recipe.stages] == [4] and only.after.machine.gpus == 4


MEMORIES = 24, 40, 48, 80, 141
HAVE = {"checkpointing", "dtype", "lora"}  # all large recipes


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LARGE)
def test_the_large_recipes_on_gpus_of_all_sizes(name):
    whole = plan(recipes.load(name), Machine(gpus=8))
    replays = any(setting(o.rollout, "replay", False) for _, o in whole.recipe.stages[2].method.updates[0].terms[:1])
    for memory in MEMORIES:
        before = evolve(whole, machine=Machine(gpus=8, memory=memory * GIB))
        found = advise(before)
        told = text(before, found)
        print(name, memory, *(line for line in told.splitlines() if "→" in line or "FIT" in line), sep="\n")
        assert not kinds(before) & HAVE and not (replays and "replay=" in told)
        assert bool(found) != before.fits
        for advice in found:
            assert advice.after.fits or advice.after.needs < before.needs
            assert f"  {advice.what}: {before.needs / GIB:.1f} → {advice.after.needs / GIB:.1f}" in told
        if memory == MEMORIES[0]:
            again = plan(found[0].after.recipe, found[0].after.machine)
            assert text(again) == text(found[0].after)
