"""Plans of stages with rewards: the calls that they count are those of a real step, sample by sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from flowmap_consistency import reward
from flowmap_consistency.apt import apt
from torch import Tensor

from flowmap import AdamW, Recipe, Stage
from flowmap.cli import recipes
from flowmap.data import LatentFolder, Sized
from flowmap.objectives import equipped
from flowmap.planning import Machine, advise, plan, text
from flowmap.planning.draws import drawn
from flowmap.planning.plan import networks
from flowmap.recipe import RecipeError
from flowmap.rewards import Scores
from flowmap.testing.counting import counting
from flowmap.training.loop import Trainer

from .helpers import CONFIG, CPU, FRAMES, ROLES, SIDE, TEXT, data, spec

BATCH, NUMBER, PAIRS = 4, 3, 4
SHALLOW = evolve(spec(), config={**CONFIG, "num_layers": 1})  # calls are counted, whatever is in them
SAMPLES = BATCH * NUMBER
SIZED = Sized(LatentFolder("nowhere"), x=(FRAMES, 16, SIDE, SIDE), cond={"text": TEXT})


@frozen
class Level:
    """The mean of videos; it counts them."""

    seen: Counter[str]
    name: str = "level"
    differentiable: bool = True

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        self.seen[f"judged by {self.name}" + (", with a gradient" if videos.requires_grad else "")] += len(videos)
        return videos.flatten(1).mean(1)


@frozen
class Decoding:
    """A backbone with a codec and nothing else; it counts what is decoded."""

    seen: Counter[str]

    def codec(self, **where: Any) -> Any:
        return self

    def decode(self, x: Tensor) -> Tensor:
        self.seen["videos decoded" + (", with a gradient" if x.requires_grad else "")] += len(x)
        return 0.5 * x


def scores(seen: Counter[str]) -> Scores:
    return Scores(Decoding(seen), ((1.0, Level(seen)), (0.5, Level(seen, "other"))))  # type: ignore[arg-type]


def nft(seen: Counter[str], steps: tuple[int, ...] = (4,)) -> Any:
    return reward.nft(scores(seen), number=NUMBER, pairs=PAIRS, steps=steps)


def planned(method: Any, **more: Any) -> Recipe:
    return Recipe(SHALLOW, (Stage(method, steps=10, batch=BATCH, ema=None),), data=SIZED, **more)


def real(method: Any, iterations: int) -> list[tuple[int, int]]:
    """(calls without a graph, with one) of the student on a sample, iteration by iteration."""
    counted = counting(SHALLOW.build(ROLES, device=CPU, dtype=torch.float32))
    nets = equipped(counted, method.equips, data(1).batch([0]))
    stage = Stage(method, 10, batch=BATCH, ema=None, optimizer=AdamW(1e-3))
    trainer, found = Trainer(nets, stage, data(BATCH)), []
    u = counted["student"]
    for iteration in range(iterations):
        u.reset()
        trainer.step(iteration)
        found.append((u.plain, u.graph))
    return found


def test_the_calls_of_a_plan_are_those_of_a_real_step() -> None:
    """16 F and 4 G a sample: 4 of the sampler, 4 of each version, 2 for the half off the diagonal."""
    seen = Counter[str]()
    ((plain, graph),) = real(nft(seen), 1)
    assert (plain, graph) == (16 * SAMPLES, 4 * SAMPLES)
    at_plan = Counter[str]()
    (stage,) = plan(planned(nft(at_plan)), Machine(gpus=1)).stages
    (price,) = stage.traced.prices.values()
    calls = {part: cost / price for part, cost in stage.parts.items()}
    kinds = ("samples", "old", "reference", "derivative", "RewardMatching forward")
    assert [calls[kind] for kind in kinds] == [4 * SAMPLES] * 5
    assert sum(calls[kind] for kind in kinds[:4]) == plain and calls["RewardMatching forward"] == graph
    assert set(calls) == {*kinds, "RewardMatching backward"} and calls["RewardMatching backward"] > 1.5 * graph
    assert stage.scored == dict(seen) == {
        "videos decoded": SAMPLES, "judged by level": SAMPLES, "judged by other": SAMPLES,
    }  # fmt: skip
    assert not at_plan  # nothing was decoded or judged to find that


def test_budgets_that_are_drawn_are_those_of_the_real_iterations() -> None:
    method = nft(Counter(), (1, 2, 4))
    found = real(method, 4)
    stage = Stage(method, 10, batch=BATCH, ema=None)
    nets = networks(planned(method), torch.float32)
    made = drawn(stage, nets, FRAMES, frozenset({"text"}), lambda call: 1.0, 0, 0, 4)
    assert [sum(one.values()) for one in made] == [plain + graph for plain, graph in found]
    assert len({one["samples"] for one in made}) > 1


def test_a_reward_s_gradient_is_counted_beside_the_calls_of_stage_two() -> None:
    seen = Counter[str]()
    method = reward.on_policy(scores(seen), steps=(4,), drop=0.0)
    real(method, 1)
    (stage,) = plan(planned(method), Machine(gpus=1)).stages
    assert stage.scored == dict(seen) and set(seen) == {
        f"{what}, with a gradient" for what in ("videos decoded", "judged by level", "judged by other")
    }  # fmt: skip
    assert stage.parts["teacher"] > 0 and stage.parts["OneRollout backward"] > 0


def test_the_plan_says_what_it_leaves_out_and_holds_the_versions() -> None:
    found = plan(planned(nft(Counter())), Machine(gpus=1))
    told = text(found, advise(found))
    assert "neither operations, memory nor\n  hours of the codec and of rewards are in this plan" in told
    rows = [line for line in told.splitlines() if line.strip().startswith(("videos decoded", "judged by level"))]
    assert len(rows) == 2 and all(row.split()[-1] == str(SAMPLES) for row in rows)
    for name in ("samples", "old", "reference"):
        assert any(line.split()[:1] == [name] for line in told.splitlines()), name
    own = found.shape.trained["student"] * 4
    assert found.stages[0].traced.lasting["adapters"] == pytest.approx(3 * own)  # itself, old and reference
    assert found.stages[0].traced.lasting["gradients"] == own  # of itself alone


@pytest.mark.usefixtures("draws_as_for_users")
def test_the_recipe_has_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted defect too: of calls in one part the backward pass would be in proportion to samples, whose number is
    drawn."""
    full = recipes.load("reward_student")
    small = evolve(full, backbone=SHALLOW, data=SIZED, evaluation=None)
    (stage,) = plan(small, Machine(gpus=1)).stages
    (price,) = stage.traced.prices.values()
    samples = 4 * 6
    assert stage.scored == {"videos decoded": samples, "judged by ink": samples, "judged by legible": samples}
    assert stage.parts["old"] == stage.parts["reference"] == samples * price
    assert 2 <= stage.parts["samples"] / price / samples <= 8
    for module in ("versions", "reward_matching"):
        monkeypatch.setattr(f"flowmap_consistency.{module}.spent_on", lambda name: nullcontext())
    (wrong,) = plan(small, Machine(gpus=1)).stages
    assert set(wrong.parts) == {"RewardMatching forward", "RewardMatching backward"}
    assert wrong.parts["RewardMatching backward"] < 0.9 * stage.parts["RewardMatching backward"]


def test_what_looks_into_a_network_has_no_plan_yet() -> None:
    with pytest.raises(RecipeError, match="equips the critic with Heads, which look into the network: that has"):
        plan(planned(apt()), Machine(gpus=1))
