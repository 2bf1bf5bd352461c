"""The loop: accumulation, averages, schedules, gradients that are not finite. Keyed randomness, so bit for bit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from torch import Tensor

from flowmap import AdamW, Batch, Ema, FlowMap, Rng, Stage, TensorData
from flowmap._types import Mean, Role, Shared
from flowmap.data import indices
from flowmap.guidance import Exact
from flowmap.method import Method, Update
from flowmap.methods import anyflow
from flowmap.objectives import Loss, Networks, nonfinite
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.objectives.mixture import Mixture
from flowmap.reweights import Balanced, Beta
from flowmap.times import Diagonal, Triangle
from flowmap.training.loop import MAX_SKIPPED, Trainer, TrainingError, rate
from tests.toys import Toy, data

CPU = torch.device("cpu")


def build(*roles: Role, spec: Toy | None = None) -> dict[Role, FlowMap]:
    return dict((spec or Toy()).build(frozenset(roles), device=CPU, dtype=torch.float32))


def method(*reweights: Any) -> Method:
    matching = FlowMapMatching(Triangle(0.5, 0.25, 5.0), reweight=reweights, guidance=Exact(3.0, 0.1))
    return Method("test", (Update("student", ((1.0, matching),)),))


def gradients(stage: Stage) -> dict[str, Tensor]:
    """Of the first step, as the optimiser gets them, not clipped."""
    trainer = Trainer(build("student"), evolve(stage, optimizer=AdamW(clip=1e9)), data())
    found = {}

    def look(*_: Any) -> None:
        found.update({name: p.grad.clone() for name, p in trainer.trained["student"].items() if p.grad is not None})

    trainer.optimizers["student"].register_step_pre_hook(look)
    trainer.step(0)
    return found


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Relative, of all gradients together."""
    assert a.keys() == b.keys()
    scale = sum(float(g.square().sum()) for g in b.values()) ** 0.5
    return sum(float((a[name] - b[name]).square().sum()) for name in b) ** 0.5 / scale


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 8, 100])
@pytest.mark.parametrize("reweights", [(), (Beta(),)])
def test_accumulation_is_the_step_of_the_whole_batch(micro: int, reweights: tuple[Any, ...]) -> None:
    """Also where the last micro-batch is smaller: each sample weighs the same."""
    stage = Stage(method(*reweights), 10, batch=8)
    assert difference(gradients(evolve(stage, micro=micro)), gradients(stage)) < 2e-6


def test_the_gradient_is_that_of_the_mean_loss_over_the_batch() -> None:
    stage, samples = Stage(method(), 10, batch=8), data()
    u = build("student")["student"]
    index = indices(len(samples), 8, 0, 0, 0)
    ((_, matching),) = stage.method.updates[0].terms
    matching({"student": u}, samples.batch(index), Rng((0, 0, 0, 0, 0)), Shared()).value.backward()
    expected = {name: p.grad for name, p in u.trained().items() if p.grad is not None}
    assert difference(gradients(stage), expected) < 1e-6


def test_what_an_iteration_shares_ends_with_it() -> None:
    nets = build("student", "teacher", "critic")
    trainer = Trainer(nets, Stage(anyflow.on_policy(steps=(2,)), 10, batch=4), data())
    for iteration in range(2):
        logs = trainer.step(iteration)
    assert trainer.shared.kept(Rng((0,), (0, 1, 2, 3), 4)) is None
    ((place, (total, count)),) = trainer.shared.state().items()
    mu = total / count
    assert place == "student/0/1/1/diagonal"  # role, update, term, reweight
    raw = float(logs["student/loss/diagonal"].value)
    assert 0 < mu < 2 * raw  # of this iteration, weighed, and not of both


@frozen
class Scaled:
    """A reweight that is a factor."""

    by: float

    def __call__(self, loss: Tensor, noise: Tensor, t: Tensor, r: Tensor, shared: Shared) -> Tensor:
        return torch.full_like(loss, self.by)


def balanced(*factors: float) -> Method:
    """A term a factor, each with a `Balanced` of its own."""
    terms = (FlowMapMatching(Triangle(0.5, 0.25), reweight=(Scaled(by), Balanced())) for by in factors)
    return Method("balanced", (Update("student", tuple((1.0, term) for term in terms)),))


@pytest.mark.parametrize("micro", [None, 2])
def test_each_balanced_has_a_mean_of_its_own(micro: int | None) -> None:
    """What a term is multiplied by off the diagonal is its own diagonal's mean: a hundredth of a loss, a hundredth."""
    trainer = Trainer(build("student"), Stage(balanced(1.0, 0.01), 10, batch=8, micro=micro), data())
    trainer.step(0)
    means = trainer.shared.state()
    assert [*means] == ["student/0/0/1/diagonal", "student/0/1/1/diagonal"]
    first, second = (total / count for total, count in means.values())
    alone = Trainer(build("student"), Stage(balanced(1.0), 10, batch=8, micro=micro), data())
    alone.step(0)
    assert means["student/0/0/1/diagonal"] == alone.shared.state()["student/0/0/1/diagonal"]
    assert second == pytest.approx(0.01 * first, rel=0.9) and second < 0.1 * first


@frozen
class Bad:
    """A term that is not a number in iteration 1."""

    needs = frozenset[Role]({"student"})

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        return Loss(torch.tensor(torch.nan if shared.iteration == 1 else 0.0, requires_grad=True))


@pytest.mark.parametrize("micro", [None, 2])
def test_of_a_step_that_another_term_spoils_no_mean_is_remembered(micro: int | None) -> None:
    (update,) = balanced(1.0).updates
    both = Method("spoilt", (update, evolve(update, terms=(*update.terms, (1.0, Bad())))))
    trainer = Trainer(build("student"), Stage(both, 10, batch=8, micro=micro), data())
    states = []
    for iteration in range(3):
        trainer.step(iteration)
        states.append(trainer.shared.state())
    assert {*states[0]} == {"student/0/0/1/diagonal", "student/1/0/1/diagonal"}
    changed = [{name for name in a if a[name] != b[name]} for a, b in pairwise(states)]
    assert changed == [{"student/0/0/1/diagonal"}, {*states[0]}]  # the first update's step was made


@pytest.mark.parametrize("velocity", ["data", "teacher"])
def test_with_balanced_any_accumulation_is_the_whole_batch(velocity: Any) -> None:
    """The diagonal comes first, so that μ is known where it is needed: in every iteration the same gradient."""
    matching = FlowMapMatching(Triangle(0.5, 0.25), reweight=(Beta(), Balanced()), velocity=velocity)
    both = (*((1.0, matching),) * 2, (1.0, Mixture(((0.5, matching), (0.5, FlowMapMatching(Diagonal()))))))
    found = []
    for micro in (None, 1, 2, 3, 7):
        nets = build("student", "teacher")
        optimizer = AdamW(1e-4, betas=(0.0, 0.9), clip=1e9)
        made = Method("balanced", (Update("student", both),))
        trainer = Trainer(nets, Stage(made, 10, batch=8, micro=micro, optimizer=optimizer), data())
        for iteration in range(3):
            trainer.step(iteration)
        state = trainer.optimizers["student"].state
        found.append(torch.cat([state[p]["exp_avg"].flatten() for p in trainer.trained["student"].values()]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5 * float(found[0].abs().max()))


def test_on_policy_accumulates_too() -> None:
    """Every term and both roles: the same (N, i) and noise in every micro-batch."""
    found = []
    for micro in (None, 2):
        nets = build("student", "teacher", "critic")
        stage = Stage(anyflow.on_policy(cotrain=0.0), 10, batch=4, micro=micro, optimizer=AdamW(lr=1e-4))
        trainer = Trainer(nets, stage, data())
        logs = trainer.step(0)
        found.append({name: float(mean.value) for name, mean in logs.items()})
    whole, parts = found
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_logs_are_means_over_the_samples_of_all_micro_batches() -> None:
    logs = [Trainer(build("student"), Stage(method(), 10, batch=8, micro=m), data()).step(0) for m in (None, 3)]
    for name in ("student/loss/diagonal", "student/loss/edge", "student/loss/free"):
        whole, parts = (log[name] for log in logs)
        assert float(whole.count) == float(parts.count)
        torch.testing.assert_close(whole.value, parts.value)


def weights(u: FlowMap) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in u.named_parameters()}


def test_two_runs_are_one_bit_for_bit_whatever_draws_beside_them() -> None:
    found = []
    for disturbed in (False, True):
        nets = build("student")
        trainer = Trainer(nets, Stage(method(Balanced()), 10, batch=4), data())
        for iteration in range(3):
            if disturbed:
                torch.rand(10)
            trainer.step(iteration)
        found.append(weights(nets["student"]))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_seed_stage_and_iteration_each_change_the_step() -> None:
    def after(iteration: int = 0, **options: Any) -> Tensor:
        nets = build("student")
        Trainer(nets, Stage(method(), 10, batch=4), data(), **options).step(iteration)
        return torch.cat([p.flatten() for p in weights(nets["student"]).values()])

    steps = [after(), after(seed=1), after(number=1), after(1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(steps) for b in steps[i + 1 :])


def test_the_average_takes_the_place_of_the_weights_at_the_end_of_the_stage() -> None:
    nets = build("student", "teacher", "critic")
    stage = Stage(anyflow.on_policy(steps=(2,)), 10, batch=4, ema=Ema(0.5, start=1), optimizer=AdamW(lr=1e-2))
    trainer = Trainer(nets, stage, data())
    assert {*trainer.averages} == {"student"}  # a critic has none: it follows the student
    expected: dict[str, Tensor] = {}
    for iteration in range(3):
        trainer.step(iteration)
        now = weights(nets["student"])
        expected = now if iteration < 1 else {name: 0.5 * expected[name] + 0.5 * now[name] for name in now}
    critic = weights(nets["critic"])
    trainer.finish()
    averaged = weights(nets["student"])
    for name, value in averaged.items():
        torch.testing.assert_close(value, expected[name])
    assert not torch.equal(averaged["net.out.weight"], now["net.out.weight"])
    assert all(torch.equal(value, critic[name]) for name, value in weights(nets["critic"]).items())


def test_without_an_average_the_weights_stay() -> None:
    nets = build("student")
    trainer = Trainer(nets, Stage(method(), 10, batch=4, ema=None), data())
    trainer.step(0)
    before = weights(nets["student"])
    trainer.finish()
    assert all(torch.equal(value, before[name]) for name, value in weights(nets["student"]).items())


@frozen
class Poisoned:
    """Regression of u on 0, whose value is not a number in the iterations named."""

    at: tuple[int, ...]
    seen: list[int]

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student"})

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        t = torch.full((len(batch),), 0.5)
        value = nets["student"](batch.x, t, t, batch.cond).square().mean()
        self.seen.append(0)
        return Loss(value * (torch.nan if len(self.seen) - 1 in self.at else 1.0), {"loss": Mean.of(value.reshape(1))})


def poisoned(*at: int) -> tuple[Trainer, FlowMap]:
    nets = build("student")
    stage = Stage(Method("poisoned", (Update("student", ((1.0, Poisoned(at, [])),)),)), 100, batch=2, ema=Ema(0.5))
    return Trainer(nets, stage, data()), nets["student"]


def test_a_gradient_that_is_not_finite_is_skipped_and_counted() -> None:
    trainer, u = poisoned(1)
    trainer.step(0)
    before, average = weights(u), trainer.averages["student"].tensors["net.out.bias"].clone()
    moments = {k: v.clone() for k, v in trainer.optimizers["student"].state[u.trained()["net.out.bias"]].items()}
    logs = trainer.step(1)
    assert float(logs["student/skipped"].value) == 1.0 and trainer.skipped == {"student": 1}
    assert all(torch.equal(value, before[name]) for name, value in weights(u).items())
    assert torch.equal(trainer.averages["student"].tensors["net.out.bias"], average)
    after = trainer.optimizers["student"].state[u.trained()["net.out.bias"]]
    assert all(torch.equal(after[k], v) for k, v in moments.items())
    logs = trainer.step(2)
    assert float(logs["student/skipped"].value) == 0.0 and trainer.skipped == {"student": 0}
    assert all(value.isfinite().all() for value in weights(u).values())


def test_five_in_a_row_stop_the_run_and_name_the_role_and_the_iteration() -> None:
    """As soon as somebody looks, also if it has recovered since."""
    trainer, u = poisoned(3, 4, 5, 6, 7)
    for iteration in range(7):
        trainer.read(trainer.step(iteration), iteration)
    message = "the student's loss or gradient was not finite 5 times in a row, by iteration 8 of stage 0 .poisoned."
    trainer.step(7)
    with pytest.raises(TrainingError, match=message):
        trainer.read(trainer.step(8), 8)
    assert all(value.isfinite().all() for value in weights(u).values())


def test_four_in_a_row_do_not() -> None:
    trainer, _ = poisoned(0, 1, 2, 3, 5, 6, 7, 8)
    for iteration in range(9):
        trainer.read(trainer.step(iteration), iteration)
    assert trainer.skipped == {"student": 4}


def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is() -> None:
    @frozen
    class Infinite:
        needs = frozenset[Role]({"student"})

        def __call__(self, nets: Networks, batch: Batch, rng: Any, shared: Shared) -> Loss:
            value = nets["student"](batch.x, *torch.full((2, len(batch)), 0.5), batch.cond).square().mean()
            return Loss(value + (torch.inf if shared.iteration == 1 else 0.0))

    nets = build("student")
    stage = Stage(Method("infinite", (Update("student", ((1.0, Infinite()),)),)), 9, batch=4, micro=2)
    trainer = Trainer(nets, stage, data())
    trainer.step(0)
    before = weights(nets["student"])
    logs = trainer.step(1)
    assert float(logs["student/gradient_norm"].value) > 0 and float(logs["student/skipped"].value) == 1.0
    assert all(torch.equal(value, before[name]) for name, value in weights(nets["student"]).items())


@frozen
class Told:
    """Regression of u on 0 that says which samples are not finite, or `says` nothing; some samples poison it."""

    bad: tuple[int, ...] = ()
    says: bool = True

    needs = frozenset[Role]({"student"})

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        t = torch.full((len(batch),), 0.5)
        each = nets["student"](batch.x, t, t, batch.cond).square().flatten(1).mean(1)
        x = batch.x.flatten(1)[:, 0]
        wrong = torch.stack([x == data().x[i].flatten()[0] for i in (*self.bad, 0)])[: len(self.bad)].any(0)
        each = torch.where(wrong, torch.nan, each)
        return Loss(each.mean(), {}, each.detach().isfinite() if self.says else None)


def blamed(objective: Any, **more: Any) -> str:
    """What the trainer says of it."""
    stage = Stage(Method("told", (Update("student", ((1.0, objective),)),)), 100, batch=8, **more)
    trainer = Trainer(build("student"), stage, data(8))
    for iteration in range(MAX_SKIPPED):
        logs = trainer.step(iteration)
    with pytest.raises(TrainingError) as error:
        trainer.read(logs, MAX_SKIPPED - 1)
    return str(error.value)


@pytest.mark.parametrize("micro", [None, 3])
def test_the_samples_are_named(micro: int | None) -> None:
    assert "; the last time in iteration 4, the loss of samples " in blamed(Told((2, 5)), micro=micro)
    found = re.search(r"samples (\d), (\d): lower its lr", blamed(Told((2, 5)), micro=micro))
    assert found is not None and {*found.groups()} == {"2", "5"}


def test_all_samples_of_a_loss_that_does_not_tell_them_apart_are_named() -> None:
    at = indices(8, 8, MAX_SKIPPED - 1, 0, 0)
    together = next(at[i : i + 2] for i in range(0, 8, 2) if 5 in at[i : i + 2])
    assert f"the loss of samples {together[0]}, {together[1]}: lower" in blamed(Told((5,), says=False), micro=2)
    assert re.search(r"the loss of samples (\d, ){7}\d: lower", blamed(Told((5,), says=False)))


def test_many_samples_are_counted() -> None:
    @frozen
    class All(Told):
        def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
            return Loss(nets["student"](batch.x, *torch.zeros(2, len(batch)), batch.cond).mean() * torch.nan)

    stage = Stage(Method("all", (Update("student", ((1.0, All()),)),)), 100, batch=12)
    trainer = Trainer(build("student"), stage, data())
    for iteration in range(MAX_SKIPPED):
        logs = trainer.step(iteration)
    with pytest.raises(TrainingError, match=r"of samples (\d+, ){7}\d+ and 4 more: lower"):
        trainer.read(logs, 9)


def test_a_gradient_of_finite_losses_is_told_from_a_loss() -> None:
    @frozen
    class Backward(Told):
        def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
            u = nets["student"](batch.x, *torch.zeros(2, len(batch)), batch.cond)
            u.register_hook(lambda gradient: gradient * torch.inf)
            return Loss(u.mean())

    assert "in iteration 4, the gradient, of losses that were finite: lower" in blamed(Backward())


def test_a_streak_that_a_checkpoint_has_ends_with_the_first_good_step() -> None:
    trainer, _ = poisoned()
    trainer.restore({"means": {}, "skipped": {"student": MAX_SKIPPED + 2}})  # as before there were shares
    assert trainer.skipped == {"student": MAX_SKIPPED + 2}
    try:
        trainer.read(trainer.step(0), 0)
    except TrainingError as error:
        pytest.fail(str(error))
    again, _ = poisoned(0)
    again.restore({"means": {}, "skipped": {"student": MAX_SKIPPED - 1}})
    with pytest.raises(TrainingError, match=f"{MAX_SKIPPED} times in a row"):
        again.read(again.step(0), 0)


# ------------------------------------------------------------------ steps of no gradient, and of no sample


@frozen
class Weighed:
    """Regression of u on 0, times a number an iteration; `shared.iteration` beyond them is the last."""

    by: tuple[float, ...]

    needs = frozenset[Role]({"student"})

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        u = nets["student"](batch.x, *torch.full((2, len(batch)), 0.5), batch.cond)
        return Loss(self.by[min(shared.iteration, len(self.by) - 1)] * u.square().mean())


def ran(steps: int, *terms: tuple[float, Any], every: int = 1, spec: Toy | None = None, batch: int = 8) -> Trainer:
    """Each step looked at."""
    method_ = Method("weighed", (Update("student", terms, every=every),))
    trainer = Trainer(build("student", spec=spec), Stage(method_, 100, batch=batch), data(8))
    for iteration in range(steps):
        trainer.read(trainer.step(iteration), iteration)
    return trainer


def test_a_gradient_of_exactly_zero_many_times_in_a_row_stops_the_run() -> None:
    assert ran(MAX_SKIPPED - 1, (1.0, Weighed((0.0,)))).skipped == {"student": MAX_SKIPPED - 1}
    said = (
        "the student's gradient was exactly zero 5 times in a row, by iteration 4 of stage 0 .weighed.; the last time "
        "in iteration 4: nothing is trained"
    )
    with pytest.raises(TrainingError, match=said):
        ran(MAX_SKIPPED, (1.0, Weighed((0.0,))))


def test_steps_of_few_samples_may_be_without_a_gradient_more_often() -> None:
    """By chance all pairs are on the diagonal, where a student that is its teacher has nothing to learn."""
    ran(39, (1.0, Weighed((0.0,))), batch=1)
    with pytest.raises(TrainingError, match="exactly zero 40 times in a row, by iteration 39"):
        ran(40, (1.0, Weighed((0.0,))), batch=1)


def test_only_steps_of_the_role_count() -> None:
    assert ran(8, (1.0, Weighed((0.0,))), every=2).skipped == {"student": 4}
    with pytest.raises(TrainingError, match="5 times in a row, by iteration 8"):
        ran(9, (1.0, Weighed((0.0,))), every=2)


@pytest.mark.parametrize(
    "by", [(0.0, 0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0)], ids=["warm-up", "a share now and then"]
)
def test_a_gradient_of_zero_now_and_then_is_none_to_stop_for(by: tuple[float, ...]) -> None:
    assert ran(12, (1.0, Weighed(by))).skipped == {"student": 0}


def test_an_update_of_weight_0_throughout_is_refused() -> None:
    with pytest.raises(ValueError, match="terms of the student all have weight 0, which trains nothing"):
        ran(1, (0.0, Weighed((1.0,))))


def test_adapters_start_with_a_gradient_in_half_of_their_weights() -> None:
    trainer = ran(1, (1.0, Weighed((1.0,))), spec=Toy(shared=True))
    assert trainer.skipped == {"student": 0}


@frozen
class Drops:
    """Regression of u on 0 that leaves out the samples at these places in the batch, whose teacher was not finite."""

    places: tuple[int, ...]

    needs = frozenset[Role]({"student"})

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        assert rng.positions is not None
        t = torch.full((len(batch),), 0.5)
        each = nets["student"](batch.x, t, t, batch.cond).square().flatten(1).mean(1)
        bad = torch.tensor([p in self.places for p in rng.positions])
        told = nonfinite(data=batch.x, teacher=torch.where(bad, torch.nan, 1.0))
        return Loss(torch.where(bad, 0.0, each).mean(), {}, nonfinite=told)


@pytest.mark.parametrize("micro", [None, 1, 3])
def test_a_step_of_no_sample_is_skipped_and_one_of_few_is_not(micro: int | None) -> None:
    """However the batch is cut, and whatever else is in the update."""
    for places, skipped in (((0, 1, 2, 3), 1.0), ((0, 1, 2), 0.0), ((), 0.0)):
        for terms in [((1.0, Drops(places)),), ((1.0, Weighed((1.0,))), (0.5, Drops(places)))]:
            stage = Stage(Method("drops", (Update("student", terms),)), 100, batch=4, micro=micro)
            trainer = Trainer(build("student"), stage, data(8))
            found = trainer.read(trainer.step(0), 0)
            assert found["student/skipped"] == skipped
            assert found.get("student/nonfinite/teacher", 0.0) == len(places) / 4
            assert "student/nonfinite/data" not in found


@pytest.mark.parametrize("parts, skipped", [((0.5, 0.5), 1.0), ((1.0, 0.0), 0.0)])
def test_a_part_of_a_mixture_without_a_sample_skips_the_step(parts: tuple[float, float], skipped: float) -> None:
    """A part that has samples and loses all; one that has none loses none."""
    mixture = Mixture(((parts[0], Weighed((1.0,))), (parts[1], Drops((0, 1, 2, 3)))))
    stage = Stage(Method("mixture", (Update("student", ((1.0, mixture),)),)), 100, batch=4)
    trainer = Trainer(build("student"), stage, data(8))
    assert trainer.read(trainer.step(0), 0)["student/skipped"] == skipped


def test_shares_are_of_the_stage_so_far_and_resumed() -> None:
    def trainer(*places: int) -> Trainer:
        stage = Stage(Method("drops", (Update("student", ((1.0, Drops(places)),)),)), 100, batch=4)
        return Trainer(build("student"), stage, data(8))

    first, resumed = trainer(1), trainer()
    first.step(0)
    resumed.restore(first.state())
    resumed.step(1)
    assert resumed.read(resumed.step(2), 2)["student/nonfinite/teacher"] == pytest.approx(1 / 12)


def test_a_term_of_weight_0_costs_no_step() -> None:
    """0 times what is not finite would."""
    ((_, fine),) = method().updates[0].terms
    nets = {name: build("student") for name in ("without", "with")}
    for name, terms in (("without", ((1.0, fine),)), ("with", ((1.0, fine), (0.0, Told((0, 1, 2, 3)))))):
        trainer = Trainer(nets[name], Stage(Method("weighed", (Update("student", terms),)), 10, batch=4), data(4))
        assert float(trainer.step(0)["student/skipped"].value) == 0.0
    assert all(
        torch.equal(v, weights(nets["with"]["student"])[k]) for k, v in weights(nets["without"]["student"]).items()
    )


def test_gradients_are_clipped_by_their_norm_before_the_step() -> None:
    nets = build("student")
    trainer = Trainer(nets, Stage(method(), 10, batch=4, optimizer=AdamW(clip=1e-3)), data())
    norms = []

    def look(*_: Any) -> None:
        norms.append(
            sum(float(p.grad.square().sum()) for p in nets["student"].parameters() if p.grad is not None) ** 0.5
        )

    trainer.optimizers["student"].register_step_pre_hook(look)
    logs = trainer.step(0)
    assert norms == [pytest.approx(1e-3, rel=1e-3)]
    assert float(logs["student/gradient_norm"].value) > 1e-2  # logged as it was


def test_gradients_do_not_outlive_their_step() -> None:
    nets = build("student", "teacher", "critic")
    Trainer(nets, Stage(anyflow.on_policy(steps=(2,)), 10, batch=4), data()).step(0)
    assert all(p.grad is None for u in nets.values() for p in u.parameters())


def test_terms_are_weighed_and_added() -> None:
    one, two = method(), method(Beta())
    ((_, a),), ((_, b),) = one.updates[0].terms[:1], two.updates[0].terms[:1]
    both = Method("both", (Update("student", ((2.0, a), (0.5, b))),))
    g = gradients(Stage(both, 10, batch=4))
    ga = gradients(Stage(one, 10, batch=4))
    # the second term has a stream of randomness of its own, so it is taken from where it is second
    gb = gradients(Stage(Method("b", (Update("student", ((0.0, a), (1.0, b))),)), 10, batch=4))
    assert difference({name: 2 * ga[name] + 0.5 * gb[name] for name in g}, g) < 1e-5


def test_terms_that_log_the_same_name_log_their_mean() -> None:
    once, twice = FlowMapMatching(Diagonal()), FlowMapMatching(Triangle(0.0, 0.0))
    both = Method("both", (Update("student", ((1.0, once), (1.0, twice))),))
    logs = Trainer(build("student"), Stage(both, 10, batch=8), data()).step(0)
    assert [int(logs[f"student/loss/{role}"].count) for role in ("diagonal", "edge", "free")] == [8, 0, 8]


def test_updates_are_made_when_they_are_due() -> None:
    trainer = Trainer(
        build("student", "teacher", "critic"), Stage(anyflow.on_policy(student_every=3), 9, batch=2), data()
    )
    due = [any(name.startswith("student/") for name in trainer.step(iteration)) for iteration in range(6)]
    assert due == [True, False, False, True, False, False]


def test_an_update_can_leave_the_turn_of_another_out() -> None:
    term = method().updates[0].terms
    assert [Update("student", term, skip=3).due(i) for i in range(7)] == [False, True, True, False, True, True, False]
    assert [Update("student", term, every=2, skip=4).due(i) for i in range(5)] == [False, False, True, False, False]
    with pytest.raises(ValueError, match=r".skip = .*: must be .*>= 2"):
        Update("student", term, skip=1)


def test_objectives_know_the_iteration() -> None:
    seen = []

    @frozen
    class Asks:
        needs = frozenset[Role]({"student"})

        def __call__(self, nets: Networks, batch: Batch, rng: Any, shared: Shared) -> Loss:
            seen.append(shared.iteration)
            return Loss(nets["student"](batch.x, *torch.zeros(2, len(batch)), batch.cond).mean())

    trainer = Trainer(
        build("student"), Stage(Method("asks", (Update("student", ((1.0, Asks()),)),)), 9, batch=2), data()
    )
    for iteration in (0, 1, 7):
        trainer.step(iteration)
    assert seen == [0, 1, 7]


def test_a_role_with_nothing_to_train_is_named() -> None:
    nets = build("teacher")
    with pytest.raises(TrainingError, match="flow_matching trains the teacher, which has nothing to train"):
        Trainer(nets, Stage(anyflow.teacher(), 10), data())


def test_the_rate_warms_up_and_stays_or_falls_along_a_cosine() -> None:
    warm = AdamW(lr=1.0, warmup=4)
    assert [rate(warm, i, 100) for i in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    cosine = AdamW(lr=1.0, schedule="cosine", floor=0.1)
    assert rate(cosine, 0, 100) == 1.0
    assert rate(cosine, 50, 100) == pytest.approx(0.55)
    assert rate(cosine, 100, 100) == pytest.approx(0.1)
    assert rate(AdamW(lr=1.0, schedule="cosine", warmup=9), 0, 100) == pytest.approx(0.1)


def test_the_rate_reaches_the_optimiser_and_differs_by_role() -> None:
    settings: dict[Role, AdamW] = {"student": AdamW(lr=1e-3, warmup=1), "critic": AdamW(lr=1e-4)}
    trainer = Trainer(
        build("student", "teacher", "critic"),
        Stage(anyflow.on_policy(steps=(2,)), 9, batch=2, optimizer=settings),
        data(),
    )
    trainer.step(0)
    assert trainer.optimizers["student"].param_groups[0]["lr"] == pytest.approx(5e-4)
    assert trainer.optimizers["critic"].param_groups[0]["lr"] == pytest.approx(1e-4)


def test_every_epoch_is_a_permutation_that_the_key_decides() -> None:
    seen = [i for iteration in range(5) for i in indices(10, 4, iteration, 0, 1)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == [*range(10)]
    assert seen[:10] != seen[10:]
    assert indices(10, 4, 3, 0, 1) == indices(10, 4, 3, 0, 1)
    assert indices(10, 4, 3, 0, 1) != indices(10, 4, 3, 0, 2)


def test_a_data_set_smaller_than_the_batch_is_walked_through_again() -> None:
    assert sorted(indices(3, 6, 0, 0)) == [0, 0, 1, 1, 2, 2]
    small = TensorData(data().x[:3], {"text": data().cond["text"][:3]}, dict(data().null))
    logs = Trainer(build("student"), Stage(method(), 10, batch=8), small).step(0)
    assert math.isfinite(float(logs["student/loss/diagonal"].value))
