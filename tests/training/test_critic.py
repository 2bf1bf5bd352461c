"""A critic with a spec of its own: a small one that follows the student while a large teacher judges it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from flowmap_wan import Lora
from flowmap_wan21 import Wan21

from flowmap import AdamW, Ema, Recipe, Stage, TensorData, distill
from flowmap.evaluation import card
from flowmap.methods import anyflow
from flowmap.model import sha256
from flowmap.planning import Machine, report
from flowmap.planning.plan import Plan, networks
from flowmap.planning.shape import shape
from flowmap.plugins import manager
from flowmap.recipe import RecipeError, digest
from flowmap.training import stages
from flowmap.training.ranks.networks import build, specs, trained
from tests.planning.helpers import CONFIG, spec
from tests.toys import Toy, data

CPU, QUIET = torch.device("cpu"), manager(entry_points=False)
SMALL, LARGE = Toy(width=8, shared=True), Toy(width=24, seed=1)
TEACHER, FORWARD, ON_POLICY = (
    Stage(method, 2, batch=4, optimizer=AdamW(lr=1e-3), ema=Ema(0.5, 1))
    for method in (anyflow.teacher(), anyflow.forward(velocity="teacher"), anyflow.on_policy(steps=(2, 4)))
)
RECIPE = Recipe(SMALL, (FORWARD, ON_POLICY), teacher=LARGE, critic=SMALL)


def test_by_default_the_critic_is_of_the_teachers_spec() -> None:
    alone, taught = Recipe(SMALL, (ON_POLICY,)), Recipe(SMALL, (ON_POLICY,), teacher=LARGE)
    assert {alone.spec_of(role) for role in alone.roles} == {SMALL}
    assert taught.spec_of("critic") is taught.spec_of("teacher") is LARGE
    assert specs(alone, False) == [(SMALL, {"student", "teacher", "critic"})]
    assert specs(taught, False) == [(SMALL, {"student"}), (LARGE, {"teacher", "critic"})]
    assert specs(RECIPE, False) == [(SMALL, {"student", "critic"}), (LARGE, {"teacher"})]
    three = evolve(RECIPE, critic=Toy(width=4))
    assert [of for _, of in specs(three, False)] == [{"student"}, {"teacher"}, {"critic"}]
    assert specs(Recipe(SMALL, (FORWARD,), teacher=LARGE, critic=SMALL), True)[0] == (SMALL, {"student"})


def test_roles_of_equal_specs_share_what_their_spec_shares() -> None:
    nets: Any = build(evolve(RECIPE, critic=Toy(width=8, shared=True)), CPU, torch.float32)
    assert nets["critic"].net is nets["student"].net is not nets["teacher"].net
    assert nets["critic"].net.out.in_features == 8 and nets["teacher"].net.out.in_features == 24
    apart: Any = build(evolve(RECIPE, critic=Toy(width=8, shared=True, seed=5)), CPU, torch.float32)
    assert apart["critic"].net is not apart["student"].net


def test_wan_of_two_sizes() -> None:
    small = Wan21(lora=Lora(2, 2.0)).tiny()
    large = evolve(small, lora=None, config={**small.config, "num_layers": 3, "ffn_dim": 64})
    nets: Any = build(evolve(RECIPE, backbone=small, teacher=large, critic=small), CPU, torch.float32)
    assert [len(nets[role].net.blocks) for role in ("student", "critic", "teacher")] == [2, 2, 3]
    assert nets["critic"].net is nets["student"].net
    assert nets["critic"].trained().keys() < nets["student"].trained().keys()  # without the second time's
    assert not nets["teacher"].trained()


def test_it_trains_and_goes_on(tmp_path: Path) -> None:
    student = distill(RECIPE, data(), out=tmp_path / "a", device=CPU, pm=QUIET)
    stopped = evolve(RECIPE, stages=(FORWARD, evolve(ON_POLICY, steps=2)))
    with pytest.raises(KeyboardInterrupt):
        distill(stopped, Stops(data(), tmp_path / "b"), out=tmp_path / "b", device=CPU, pm=QUIET, save_minutes=0)
    again = distill(stopped, data(), out=tmp_path / "b", device=CPU, pm=QUIET)
    assert sha256(dict(student.trained())) == sha256(dict(again.trained()))
    told = json.loads((tmp_path / "a" / "status.json").read_text())
    assert told["state"] == "finished"


class Stops:
    """Data at which a run is interrupted once it has a checkpoint of its last stage."""

    def __init__(self, of: Any, run: Path) -> None:
        self.of, self.run = of, run

    def __len__(self) -> int:
        return len(self.of)

    def fingerprint(self) -> str:
        return str(self.of.fingerprint())

    def batch(self, index: Any) -> Any:
        if list(self.run.glob("checkpoints/step_01_*")):
            raise KeyboardInterrupt
        return self.of.batch(index)


@pytest.mark.parametrize("critic", [None, SMALL], ids=["the teacher's", "its own"])
def test_only_a_critic_of_the_teachers_spec_starts_as_the_teacher_that_was_fine_tuned(critic: Toy | None) -> None:
    recipe = Recipe(SMALL, (TEACHER, ON_POLICY), teacher=LARGE, critic=critic)
    nets = build(recipe, CPU, torch.float32)
    weights = trained(recipe, nets)
    with torch.no_grad():
        for p in weights["teacher"].values():
            p += 1.0
    before = sha256(dict(weights["critic"]))
    stages._inherit(recipe, 1, weights)
    assert (sha256(dict(weights["critic"])) == before) == (critic is not None)
    if critic is None:
        assert all(torch.equal(p, weights["critic"][name]) for name, p in weights["teacher"].items())


@frozen
class Missing(Toy):
    def validate(self) -> None:
        raise ValueError("Missing.path = 'nowhere': there is no such directory")


def test_what_is_wrong_with_it_is_said() -> None:
    assert evolve(RECIPE, critic=Missing()).wrong() == ("Missing.path = 'nowhere': there is no such directory",)
    with pytest.raises(TypeError, match=r"Recipe.critic"):
        evolve(RECIPE, critic="small")
    narrow = evolve(Wan21(lora=None).tiny(), text_length=4, text_tokens=4)
    wide = Wan21(lora=None).tiny()
    x, cond = wide.example(4)
    found = TensorData(x, dict(cond), {"text": torch.zeros(1, *cond["text"].shape[1:])})
    with pytest.raises(RecipeError, match=r"^the critic \(Wan21, random weights\) does not take the data .* at most"):
        distill(Recipe(wide, (ON_POLICY,), critic=narrow), found, device=CPU, pm=QUIET)


def test_it_counts_in_the_digest() -> None:
    assert len({digest(evolve(RECIPE, critic=critic)) for critic in (None, SMALL, LARGE, Toy(width=4))}) == 4


def test_the_card_names_networks_that_are_not_the_backbone() -> None:
    wan = [evolve(Wan21(lora=None).tiny(), path=path) for path in ("org/small", "org/large", "org/critic")]
    recipe = Recipe(wan[0], (ON_POLICY,), teacher=wan[1], critic=wan[2])
    assert card._training(recipe).endswith("The teacher is `org/large`. The critic is `org/critic`.")
    assert "critic is" not in card._training(evolve(recipe, critic=wan[0]))
    assert "teacher is" not in card._training(Recipe(wan[0], (ON_POLICY,)))


def outlined(recipe: Recipe) -> Plan:
    """A plan without its stages."""
    return Plan(recipe, Machine(), shape(recipe, networks(recipe, torch.float32)), ())


def test_a_plan_of_a_large_teacher_with_a_small_critic() -> None:
    small = spec(checkpointing=True)
    large = evolve(small, config={**CONFIG, "num_layers": 12})
    recipe = evolve(RECIPE, backbone=small, teacher=large, critic=small, data=None)
    shared, own, theirs = (outlined(evolve(recipe, critic=c)) for c in (small, evolve(small, seed=1), None))
    assert shared.shape.frozen == theirs.shape.frozen  # a critic is adapters on a base that is there already
    assert own.shape.frozen > shared.shape.frozen
    assert shared.shape.trained["critic"] < 0.3 * theirs.shape.trained["critic"]
    assert shared.shape.sizes["critic"] < shared.shape.sizes["teacher"] < shared.shape.frozen
    lines = {line.strip() for line in report._parameters(shared)}
    sizes = {role: f"{count / 1e9:.3f} G" for role, count in shared.shape.sizes.items()}
    assert f"student  {sizes['student']}, random weights, built with the critic" in lines
    assert f"critic   {sizes['critic']}, random weights, built with the student" in lines
    assert f"teacher  {sizes['teacher']}, random weights" in lines
    assert "built with" not in "".join(report._parameters(outlined(evolve(recipe, teacher=None, critic=None))))
    assert report._recomputed(shared) == "; blocks are recomputed"
    assert report._recomputed(outlined(evolve(recipe, critic=spec(checkpointing=False)))) == "; nothing is recomputed"
