"""Plans of small recipes, whose numbers can be counted; and the committed plans of the large ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attrs import evolve
from flowmap_consistency.decoded import Decoded
from flowmap_consistency.parallel_decoding import parallel_decoding
from flowmap_digits.data import MovingDigits

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
ROWS = {  # with the memory that the committed plan is for
    "anyflow_ltx": "80GiB",
    "anyflow_hunyuan": "141GiB",
    "anyflow_cogvideox5b": "80GiB",
    "anyflow_qwen_image": "141GiB",
    "anyflow_stepvideo": "141GiB",
    "anyflow_wan_i2v14b": "80GiB",
    "anyflow_wan22_a14b_high": "80GiB",
    "anyflow_wan22_a14b_low": "141GiB",
}
SIZED = Sized(LatentFolder("nowhere"), x=(FRAMES, 16, SIDE, SIDE), cond={"text": TEXT})


def recipe(*methods, of=None, **more):
    stages = tuple(Stage(method, steps=100, batch=16, micro=2) for method in methods)
    return Recipe(backbone=of or spec(), stages=stages, data=SIZED, **more)


@pytest.fixture(scope="module")
def whole():
    return plan(recipe(anyflow.teacher(), anyflow.forward(drop=0.0), anyflow.on_policy(drop=0.0)), Machine(gpus=4))


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


def test_stage_two_jumps_as_often_as_it_does_on_average(whole, draws_as_for_users):
    whole_narrow = plan(evolve(whole.recipe, dtype="bfloat16"), whole.machine)  # float32 makes W + s B A for each call
    narrow = whole_narrow.stages[2]
    parts = narrow.parts
    assert parts["rollout forward"] / parts["student forward"] == pytest.approx(2.617, rel=0.03)
    assert parts["teacher"] / parts["critic score"] == pytest.approx(2)
    wide = whole.stages[2].parts
    assert 1.5 < wide["teacher"] / wide["critic score"] < 2  # both branches of guidance are one call, with one weight
    found = by_part(narrow)
    assert sum(found.values()) == pytest.approx(narrow.flops)
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


def test_a_context_divides_what_passes_among_gpus_that_have_the_same_samples(whole):
    shared = plan(whole.recipe, Machine(gpus=4, context=2))
    for alone, two in zip(whole.stages, shared.stages, strict=True):
        assert two.local(8) == 2 * alone.local(8) == alone.local(4)
        assert two.flops == alone.flops and two.samples == alone.samples
        one, half = alone.peak(8, whole.shape), two.peak(8, shared.shape)
        assert half["activations"] == pytest.approx(one["activations"] / 2)
        assert half["weights"] == one["weights"] and half["gathered"] == one["gathered"]
    assert shared.worlds == [2 * n for n in whole.worlds]
    assert "2 GPUs share the tokens of a sample" in text(shared)
    with pytest.raises(RecipeError, match="context = 5, ranks that share a sample's tokens"):
        plan(whole.recipe, Machine(gpus=5, context=5))


class Judge:
    """An evaluation, as far as a plan looks at one."""

    def __call__(self, nets, backbone, out):
        raise AssertionError("a plan judges nothing")

    def quick(self):
        return self

    def written(self, out):
        return False


@pytest.fixture(scope="module")
def judged():
    """A whole student, trained alone: without an evaluation and with one."""
    plain = recipe(flow_matching(role="student"), of=spec(lora=False), dtype="bfloat16")
    return [plan(r, Machine(gpus=4)) for r in (plain, evolve(plain, evaluation=Judge()))]


def test_a_teacher_for_the_evaluation_alone_is_held_all_the_while(judged):
    without, judge = judged
    assert without.shape.frozen == without.shape.judge == 0
    assert judge.shape.judge == judge.shape.frozen > 0.9 * without.shape.trained["student"]
    more = [p.stages[0].traced.lasting["weights"] for p in judged]
    assert 2 * judge.shape.judge <= more[1] - more[0] < 2.6 * judge.shape.judge  # bfloat16, but for what is exact
    assert without.stages[0].flops == judge.stages[0].flops
    assert judge.shape.end - without.shape.end == more[1] - more[0] - _buffers(judged)
    assert "of them for the evaluation alone" in text(judge) and "to judge it by" in text(judge)
    assert "for the evaluation" not in text(without)


def _buffers(plans):
    """Tables of positions, which a network has beside its parameters."""
    nets = networks(plans[1].recipe, torch.bfloat16)
    return sum(b.numel() * b.element_size() for b in nets["teacher"].buffers())


def test_adapters_cost_an_evaluation_nothing():
    plain = recipe(flow_matching(role="student"))
    found = [plan(r, Machine(gpus=1)).shape for r in (plain, evolve(plain, evaluation=Judge()))]
    assert found[0].frozen == found[1].frozen and found[1].judge == 0


def test_a_whole_network_has_weights_in_float32_and_computes_in_bfloat16(judged):
    found, size = judged[0].stages[0].traced, judged[0].shape.trained["student"]
    assert found.lasting["adapters"] == 4 * size == found.accumulated
    assert found.lasting["average"] == 4 * size and found.lasting["optimiser"] == pytest.approx(8 * size, rel=0.01)
    assert found.single < 0.02
    full = plan(evolve(judged[0].recipe, dtype="float32"), Machine(gpus=4))
    assert full.stages[0].traced.single == 1.0
    for float32, slower in (("tf32", 2.0), ("ieee", 989 / 67)):
        machine = Machine(float32=float32)
        ratio = full.stages[0].hours(machine) / judged[0].stages[0].hours(machine)
        assert ratio == pytest.approx(slower, rel=0.02)
    assert found.highest.passing() < 0.85 * full.stages[0].traced.highest.passing()


def test_gradients_of_two_roles_are_never_there_at_once(whole):
    stage, trained = whole.stages[2], whole.shape.trained
    assert stage.traced.accumulated == 4 * max(trained["student"], trained["critic"])
    assert stage.peak(1, whole.shape)["gradients"] == stage.traced.accumulated < stage.traced.lasting["gradients"]


def test_the_end_is_on_the_first_gpu(whole):
    """The base with the student's adapters, and what is written; not the critic's."""
    nets = networks(whole.recipe, torch.float32)
    kept = sum(4 * p.numel() for name, p in nets["student"].named_parameters() if ".critic." not in name)
    kept -= sum(4 * p.numel() for p in nets["teacher"].trained().values())
    assert whole.shape.end == 2 * kept
    tight = evolve(whole, machine=Machine(gpus=4, memory=int(kept)))
    assert tight.peak(16) >= whole.shape.end and "on the first GPU, on any number of them" in text(tight)


def test_without_a_pass_on_data_nothing_is_compared_with_flow_matching():
    (stage,) = plan(recipe(anyflow.on_policy(cotrain=0.0, steps=(2,))), Machine(gpus=4)).stages
    assert stage.ratio is None is stage.reference_ratio and stage.flops > 0


def test_a_student_of_heads_has_a_plan(draws_as_for_users):
    """Of blocks of one interval to the whole way: as many calls as its walks have blocks, two of the teacher for each
    and its guidance."""
    of, method = spec(), parallel_decoding(w=3.0, least=1, most=8)
    stages = (Stage(method, steps=100, batch=16, micro=2),)
    (stage,) = plan(Recipe(Decoded(of, heads=8), stages, teacher=of, data=SIZED), Machine(gpus=4)).stages
    parts = stage.parts
    assert parts["teacher"] / parts["ParallelDecoding forward"] == pytest.approx(4, rel=0.1)  # heads cost a little
    (price,) = {price for call, price in stage.traced.prices.items() if call.role == "teacher"}
    blocks = parts["teacher"] / (16 * 4 * price)
    assert blocks == pytest.approx((1 + 1 / 8) ** 7, rel=0.05)
    assert stage.traced.lasting["optimiser"] > 0 and stage.ratio is None


def test_what_is_put_together():
    assert Shape(0, {}, 0, block=10, outside=3, block_gradients=2, result=5, left=7, sizes={}).gathered(2) == 27


def test_the_smallest_number_of_gpus_divides_the_batches_and_fits(whole):
    assert whole.worlds == [1, 2, 4, 8, 16]
    between = (whole.peak(2) + whole.peak(4)) / 2
    tight = evolve(whole, machine=Machine(gpus=2, memory=int(between)))
    assert not tight.fits and tight.smallest == 4
    assert "DOES NOT FIT" in text(tight)
    none = evolve(whole, machine=Machine(gpus=2, memory=int(RESERVE)))
    assert none.smallest is None and "Too much for any number" in text(none)
    assert "DOES NOT RUN on 3 GPUs" in text(evolve(whole, machine=Machine(gpus=3)))


def test_hours_are_operations_over_speed(whole):
    stage, machine = whole.stages[1], Machine(gpus=2, tflops=100.0, utilisation=0.5)
    bfloat16 = stage.flops * 100 / (2 * 100e12 * 0.5) / 3600  # and the stage is in float32
    assert stage.hours(machine) == pytest.approx(bfloat16 * 989 / 67)
    assert stage.hours(evolve(machine, float32="tf32")) == pytest.approx(2 * bfloat16)


def test_what_cannot_be_planned_is_a_sentence():
    with pytest.raises(RecipeError, match=r"LatentFolder\(\.\.\.\), which does not say of what size: .* Sized"):
        plan(evolve(recipe(anyflow.forward()), data=LatentFolder("nowhere")))
    with pytest.raises(RecipeError, match="'nobody/knows': the size of this network is not known"):
        plan(recipe(anyflow.forward(), of=evolve(spec(), path="nobody/knows")))


def test_data_that_tells_its_sizes_needs_no_sized():
    """The quickstart's: as they are when it is loaded."""
    found = recipes.load("quickstart")
    few = MovingDigits(count=2)
    sample = few.load(found.backbone, None, device=CPU).batch([0])
    own = {"x": tuple(sample.x.shape[1:]), **{name: tuple(v.shape[1:]) for name, v in sample.cond.items()}}
    assert few.sizes(found.backbone) == own
    short = evolve(found, stages=(evolve(found.stages[0], batch=2),))
    assert plan(short, Machine(gpus=1)).fits


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


@pytest.mark.parametrize("name", [*LARGE, *ROWS])
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
@pytest.mark.usefixtures("draws_as_for_users")
@pytest.mark.parametrize("name, memory", [("anyflow_wan1b", "80GiB"), *ROWS.items()])
def test_the_committed_plan_is_what_the_command_prints(name, memory, capsys):
    assert main(["distill", name, "--plan", "--gpus", "8", "--memory", memory]) == 0
    assert capsys.readouterr().out == (DOCS / f"{name}.txt").read_text()


def test_memory_is_given_with_a_unit():
    from flowmap.cli.plan import memory

    assert memory("80GiB") == 80 * GIB and memory("1.5tb") == 1_500_000_000_000


def test_a_derivative_does_not_pay_for_a_history_that_was_kept():
    of = spec(causal=True, checkpointing=False)
    recipe = Recipe(of, (Stage(anyflow.forward(), steps=10, batch=4),), data=data(), dtype="bfloat16")
    kept, anew = (
        plan(r, Machine(gpus=1)).stages[0] for r in (recipe, evolve(recipe, backbone=evolve(of, keep_history=False)))
    )
    assert {call.kept for call in kept.traced.prices} == {False, True} and not any(c.kept for c in anew.traced.prices)
    assert kept.parts["derivative"] < 0.7 * anew.parts["derivative"]
    rest = {part: flops for part, flops in anew.parts.items() if part != "derivative"}  # but for W + s B A of embedders
    assert {part: flops for part, flops in kept.parts.items() if part != "derivative"} == pytest.approx(rest, rel=1e-3)
