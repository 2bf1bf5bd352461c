"""Plans of small recipes, whose numbers can be counted; and the committed plans of the large ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attrs import evolve

from flowmap import Recipe, Stage
from flowmap.cli import main, recipes
from flowmap.data import DataError, LatentFolder, Sized, TensorData
from flowmap.methods import anyflow
from flowmap.methods.flow_matching import flow_matching
from flowmap.planning import Machine, plan, text
from flowmap.planning.plan import GIB, RESERVE, Shape, networks
from flowmap.planning.report import by_part
from flowmap.recipe import RecipeError

from .helpers import CPU, FRAMES, SIDE, TEXT, data, spec

DOCS = Path(__file__).parents[2] / "docs" / "plans"
LARGE = ("anyflow_wan1b", "anyflow_wan14b", "anyflow_far1b", "anyflow_far14b")
SIZED = Sized(LatentFolder("nowhere"), x=(FRAMES, 16, SIDE, SIDE), cond={"text": TEXT})


def recipe(*methods, of=None, **more):
    stages = tuple(Stage(method, steps=100, batch=16, micro=2) for method in methods)
    return Recipe(backbone=of or spec(), stages=stages, data=SIZED, **more)


@pytest.fixture(scope="module")
def whole():
    return plan(recipe(anyflow.teacher(), anyflow.forward(), anyflow.on_policy()), Machine(gpus=4))


@pytest.fixture(scope="module")
def causal():
    of = spec(causal=True)
    return plan(recipe(anyflow.on_policy(), of=evolve(of, partition=(1, 1, 1, 1, 1), long=1.0)), Machine(gpus=4))


def test_stage_one_takes_a_call_for_guidance_and_two_for_half_of_the_derivatives(whole):
    parts = whole.stages[1].parts
    call = parts["student forward"]
    assert parts["guidance"] == pytest.approx(call) and parts["derivative"] == pytest.approx(call)
    assert whole.stages[1].reference_ratio > whole.stages[1].ratio > 1
    twice = whole.stages[1].reference_ratio - whole.stages[1].ratio  # the other half of the differences
    assert twice == pytest.approx(call / (sum(parts.values()) / whole.stages[1].ratio), rel=1e-6)


def test_stage_two_jumps_as_often_as_it_does_on_average(whole):
    parts = whole.stages[2].parts
    assert parts["rollout forward"] / parts["student forward"] == pytest.approx(2.617, rel=0.03)
    assert parts["teacher"] / parts["critic score"] == pytest.approx(2)
    found = by_part(whole.stages[2])
    assert sum(found.values()) == pytest.approx(whole.stages[2].flops)
    assert found["rollout"] == pytest.approx(parts["rollout forward"] + parts["rollout backward"])


def test_a_causal_rollout_pays_for_its_history(causal):
    assert causal.stages[0].parts["history"] > 0
    past = {call.past for call in causal.stages[0].traced.prices if call.what == "extend"}
    assert past == {0, 1, 2, 3}  # the last of five chunks is never history


def test_memory_is_divided_by_what_is_sharded_and_not_by_what_passes(whole):
    one, four = (whole.stages[2].peak(n, whole.shape) for n in (1, 4))
    for kind in ("weights", "adapters", "optimiser", "average", "gradients"):
        assert four[kind] == pytest.approx(one[kind] / 4), kind
    assert four["activations"] == one["activations"] and one["gathered"] == 0 < four["gathered"]
    sixteen = whole.stages[2].peak(16, whole.shape)  # a sample each, where micro is 2
    assert sixteen["activations"] == pytest.approx(one["activations"] / 2)


def test_what_is_put_together():
    assert Shape(0, {}, block=10, outside=3, block_gradients=2).gathered(2) == 27


def test_the_smallest_number_of_gpus_divides_the_batches_and_fits(whole):
    assert whole.worlds == [1, 2, 4, 8, 16]
    between = (whole.peak(2) + whole.peak(4)) / 2
    tight = evolve(whole, machine=Machine(gpus=2, memory=int(between)))
    assert not tight.fits and tight.smallest == 4
    assert "4 GPUs hold it" in text(tight) and "DOES NOT FIT" in text(tight)
    none = evolve(whole, machine=Machine(gpus=2, memory=int(RESERVE)))
    assert none.smallest is None and "Too much for any number" in text(none) and "Stage.micro = 1" in text(none)
    assert "DOES NOT RUN on 3 GPUs" in text(evolve(whole, machine=Machine(gpus=3)))


def test_hours_are_operations_over_speed(whole):
    stage, machine = whole.stages[1], Machine(gpus=2, tflops=100.0, utilisation=0.5)
    assert stage.hours(machine) == pytest.approx(stage.flops * 100 / (2 * 100e12 * 0.5) / 3600)


def test_what_cannot_be_planned_is_a_sentence():
    with pytest.raises(RecipeError, match=r"LatentFolder\(\.\.\.\), which does not say of what size: .* Sized"):
        plan(evolve(recipe(anyflow.forward()), data=LatentFolder("nowhere")))
    with pytest.raises(RecipeError, match="'nobody/knows': the size of this network is not known"):
        plan(recipe(anyflow.forward(), of=evolve(spec(), path="nobody/knows")))


def test_data_in_memory_has_a_size_of_its_own():
    found = plan(evolve(recipe(flow_matching(role="student")), data=data()), Machine(gpus=1))
    assert found.stages[0].ratio == pytest.approx(1.0) == found.stages[0].reference_ratio


def test_data_of_another_size_than_the_recipe_says_is_refused():
    class Folder:
        def load(self, backbone, cache, *, device):
            return TensorData(torch.zeros(2, FRAMES, 16, SIDE, SIDE + 2), {"text": torch.zeros(2, *TEXT)})

    with pytest.raises(DataError, match="must be"):
        evolve(SIZED, source=Folder()).load(spec(), None, device=CPU)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--memory", "80"], "must be a number with a unit, GiB, GB, MiB, MB, TiB or TB, such as 80GiB"),
        (["--memory", "0GiB"], "must be a number with a unit"),
        (["--gpus", "0"], "at least 1"),
        (["--utilisation", "40"], "above 0 and at most 1"),
        (["--tflops", "-1"], "above 0"),
    ],
)
def test_bad_options_are_a_sentence(arguments, said, capsys):
    assert main(["distill", "anyflow_wan1b", "--plan", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_option_of_a_plan_without_one_is_refused(capsys):
    assert main(["distill", "anyflow_wan1b", "--gpus", "8"]) == 2
    assert "--gpus belongs to a plan" in capsys.readouterr().err


@pytest.mark.parametrize("name", LARGE)
def test_the_committed_plans_have_the_parameters_of_the_recipes(name):
    found = recipes.load(name)
    nets = networks(found, torch.bfloat16)
    committed = (DOCS / f"{name}.txt").read_text()
    for role in sorted(found.trains):
        count = sum(p.numel() for p in nets[role].trained().values())
        assert f"{role} {count / 1e6:.1f} M" in committed
    assert nets["student"].trained()  # 258 M of 1.3B, arXiv:2605.13724
    if name == "anyflow_wan1b":
        assert "student 258.1 M" in committed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_committed_plan_is_what_the_command_prints(capsys):
    assert main(["distill", "anyflow_wan1b", "--plan", "--gpus", "8", "--memory", "80GiB"]) == 0
    assert capsys.readouterr().out == (DOCS / "anyflow_wan1b.txt").read_text()


def test_memory_is_given_with_a_unit():
    from flowmap.cli.plan import memory

    assert memory("80GiB") == 80 * GIB and memory("1.5tb") == 1_500_000_000_000
