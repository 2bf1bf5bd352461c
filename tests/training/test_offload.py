"""Frozen weights and inputs in the host's memory: the same numbers, by the way that a GPU goes, on the CPU."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_far import Far
from flowmap_wan21 import Wan21

from flowmap import AdamW, Recipe, Stage, TensorData, distill
from flowmap.derivative import ForwardMode
from flowmap.methods import anyflow
from flowmap.methods.flow_matching import flow_matching
from flowmap.methods.meanflow import meanflow
from flowmap.planning.plan import Machine, plan
from flowmap.recipe import RecipeError, digest
from flowmap.training.loop import Trainer
from flowmap.training.ranks import offload
from flowmap.training.ranks.offload import Inputs, Weights, ways
from tests.planning.helpers import ROLES, data, hollow, measured_step, spec, stage

CPU = torch.device("cpu")
SPECS = {
    "wan": Wan21(checkpointing=True, base="int8"),
    "nothing recomputed": Wan21(),
    "far": Far(checkpointing=True),
    "ltx": Diffusers(family="ltx", checkpointing=True),
}


@pytest.fixture(autouse=True)
def _every_tensor(monkeypatch):
    """Of a toy none is large."""
    monkeypatch.setattr(offload, "LEAST", 0)


def recipe(of: str, what: str | None = None, **more) -> Recipe:
    tiny = SPECS[of].tiny()
    z, cond = tiny.example(6)
    methods = anyflow.forward(), anyflow.on_policy(steps=(2, 4)), meanflow(drop=0.0, derivative=ForwardMode())
    stages = [Stage(method, 2, 2, optimizer=AdamW(1e-2)) for method in methods]
    samples = TensorData(z, dict(cond), dict(tiny.null(cond)))
    return Recipe(tiny, stages, data=samples, offload=what, **more)


@pytest.mark.parametrize("of", SPECS)
def test_no_number_changes(of):
    plain = distill(recipe(of), device="cpu").trained()
    there = distill(recipe(of, "both"), device="cpu")
    assert all(torch.equal(p, plain[name]) for name, p in there.trained().items())
    assert {type(way) for way in ways({"student": there}) if way.moved} == {Weights, Inputs}


def networks(what):
    nets = evolve(spec(), base="int8").build(ROLES, device=CPU, dtype=torch.float32)
    offload.offload(nets, what, CPU)
    return nets


def test_each_block_s_weights_are_fetched_once_a_pass_and_the_next_ones_are_on_their_way():
    nets = networks("weights")
    (way,) = ways(nets)
    own = sum(p.nbytes for block in way.blocks for p in block.parameters() if not p.requires_grad)
    (block,) = {sum(p.nbytes for p in b.parameters() if not p.requires_grad) for b in way.blocks}
    z, t, cond = data().x, torch.tensor([0.8, 0.6]), {"text": data().cond["text"]}
    out = nets["student"](z, t, t / 2, cond)
    assert way.moved == own
    ahead, inner = [], Weights._fetch
    offload.Weights._fetch = lambda self, i: (ahead.append(i), inner(self, i))[1]
    try:
        out.sum().backward()
        nets["student"](z, t, t / 2, cond)
    finally:
        offload.Weights._fetch = inner
    assert ahead == [2, 1, 0, 1, 0, 2]  # back from the last; what comes after the first is guessed; forward again
    assert way.moved == own + 6 * block
    shown = [name for b in way.blocks for layer in b.modules() for name in vars(layer) if name in ("weight", "scale")]
    assert not shown and all(not way.host & {id(p)} for u in nets.values() for p in u.trained().values())


@pytest.mark.parametrize("what", ["weights", "inputs", "both"])
def test_a_plan_holds_on_the_gpu_what_is_not_at_the_host(what):
    from flowmap.planning.trace import trace

    low = evolve(spec(), base="int8")
    method = anyflow.forward()
    plain = trace(stage(method), hollow(low), data(), 0, 0, 1)
    nets = hollow(low)
    offload.offload(nets, what, CPU)
    found = trace(stage(method), nets, data(), 0, 0, 1)
    real_nets = networks(what)
    real = measured_step(real_nets, stage(method), data(), 1)
    held = found.fullest.held
    assert sum(held.values()) == pytest.approx(real, rel=0.1)  # both memories are one here
    assert held["host"] > 0 and sum(held.values()) - held["host"] < sum(plain.fullest.held.values())
    assert found.weights_moved == sum(w.moved for w in ways(real_nets) if isinstance(w, Weights))
    assert found.inputs_moved == sum(w.moved for w in ways(real_nets) if isinstance(w, Inputs))
    assert found.parts == plain.parts


def test_a_plan_waits_for_a_slow_link():
    own = Recipe(spec(), (stage(flow_matching(role="student")),), data=data(), offload="both")
    (found,) = plan(own, Machine(gpus=1)).stages
    slow, fast = (found.hours(Machine(gpus=1, link=link)) for link in (1e3, 1e15))
    assert slow == pytest.approx(sum(found.moved) / 1e3 * 10 / 3600, rel=1e-3)
    plain = evolve(found, traced=evolve(found.traced, weights_moved=0, inputs_moved=0))
    assert fast == pytest.approx(plain.hours(Machine(gpus=1)), rel=1e-3)
    with pytest.raises(RecipeError, match=r"in pieces on 2 processes stays on their GPUs: leave it out, or"):
        plan(own, Machine(gpus=2))


def test_a_run_is_the_same_with_and_without(tmp_path):
    """And goes on so."""
    own = evolve(recipe("wan"), stages=recipe("wan").stages[:1])
    assert digest(own) == digest(evolve(own, offload="both"))
    distill(evolve(own, offload="both"), out=tmp_path, device="cpu")
    again, plain = distill(own, out=tmp_path, device="cpu").trained(), distill(own, device="cpu").trained()
    assert all(torch.equal(p, plain[name]) for name, p in again.items())
    assert json.loads((tmp_path / "student" / "flowmap.json").read_text())["bfloat16"]["outputs"] is None


def test_several_processes_and_other_words_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"Recipe\.offload = 'all': must be 'weights', 'inputs' or 'both'"):
        recipe("wan", "all")
    monkeypatch.setattr(sys.modules["flowmap.distill"], "world", lambda: 2)
    with pytest.raises(RecipeError, match=r"offload = 'both': a network in pieces on 2 processes stays"):
        distill(recipe("wan", "both"), device="cpu")


# ------------------------------------------------------------------ planted defects
def test_planted_the_weights_of_another_block(monkeypatch):
    inner = Weights._fetch
    monkeypatch.setattr(Weights, "_fetch", lambda self, i: inner(self, (i + 1) % len(self.blocks)))
    with pytest.raises(AssertionError):
        test_no_number_changes("wan")


def test_planted_an_input_that_comes_back_late(monkeypatch):
    def late(self, packed):
        return packed[0] * 1.001 if packed[1] else packed[0]

    monkeypatch.setattr(Inputs, "unpack", late)
    with pytest.raises(AssertionError):
        test_no_number_changes("wan")


def test_planted_weights_that_stay():
    nets = networks("weights")
    (way,) = ways(nets)
    trainer = Trainer(nets, stage(anyflow.forward()), data())
    sizes = []
    for block in way.blocks:
        block.register_forward_hook(lambda b, *_: sizes.append(len(way._coming)))
    trainer.step(0)
    assert max(sizes) == 1  # never more than one block ahead
