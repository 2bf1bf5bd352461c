"""A critic with heads: of the widths that the network has, trained and resumed with it, unseen by others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from attrs import define, evolve
from flowmap_consistency.adversarial import Adversarial, Discrimination, OneRollout
from flowmap_consistency.dmd2 import dmd2
from flowmap_consistency.heads import Heads, Judge, features
from flowmap_wan21 import Wan21
from safetensors.torch import load_file
from torch import Tensor

from flowmap import AdamW, Batch, Ema, Recipe, Rng, Stage, distill, hookimpl
from flowmap._types import Shared
from flowmap.method import Method, Update
from flowmap.methods import anyflow
from flowmap.objectives import equipped
from flowmap.plugins import manager
from flowmap.recipe import describe
from flowmap.rollout import ConsistencySimulation
from flowmap.training.ranks.networks import build
from tests.consistency.judges import CPU, ROLES, Flat, Named, one, toy
from tests.toys import Toy, ToyFlowMap, data

T = torch.tensor([0.7, 0.3])
SPECS = [Toy(), Toy(shared=True), Toy(checkpointing=True), Toy(shared=True, checkpointing=True)]


def judge(spec: Toy | Wan21 | None = None, heads: Heads | None = None, dtype: torch.dtype = torch.float32) -> Judge:
    found = toy(spec) if spec is None or isinstance(spec, Toy) else spec
    z, c = found.example(1)
    critic = found.build(ROLES, device=CPU, dtype=dtype)["critic"]
    return (heads or Heads())(critic, Batch(z, c, {}))


# ---------------------------------------------------------------------- what a head sees


def test_the_width_of_a_feature_is_what_the_network_gives_out() -> None:
    made = judge()
    assert made.at == (0, 1)
    assert [x.shape for x in features(made.u, made.at, *args())] == [(2, 4, 48), (2, 4, 16)]
    assert made.head.norm.normalized_shape == (64,)  # type: ignore[union-attr]


def args() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    z, c = Toy().example(2)
    return z, T, dict(c)


@pytest.mark.parametrize(
    "depths, count, at",
    [
        ((16 / 36, 26 / 36, 1.0), 36, (15, 25, 35)),  # APT's layers 16, 26, 36
        ((16 / 30, 23 / 30, 1.0), 30, (15, 22, 29)),  # the port of DMD2 to Wan, which counts from 0
        ((16 / 36, 26 / 36, 1.0), 2, (0, 1)),
        ((0.1, 0.2), 1, (0,)),
    ],
)
def test_depths_are_shares_of_the_blocks(depths: tuple[float, ...], count: int, at: tuple[int, ...]) -> None:
    assert Heads(depths).blocks(count) == at


@pytest.mark.parametrize("pool", ["query", "mean"])
@pytest.mark.parametrize("spec", [Wan21(lora=None).tiny(), Wan21().tiny()], ids=["full", "lora"])
def test_a_block_that_gives_out_a_tuple_has_its_tokens_first(spec: Wan21, pool: str) -> None:
    made = judge(spec, Heads(pool=pool))  # type: ignore[arg-type]
    z, c = spec.example(2)
    tokens = features(made.u, made.at, z, T, c)
    assert [x.shape for x in tokens] == [(2, z.shape[1] * z.shape[3] * z.shape[4] // 4, 24)] * 2
    assert made.logits(z, T, c).shape == (2,)


@pytest.mark.parametrize("pool", ["query", "mean"])
def test_the_order_of_tokens_is_nothing_to_a_head_and_their_values_are(pool: str) -> None:
    made = judge(heads=Heads(pool=pool))  # type: ignore[arg-type]
    tokens = [Rng.seeded(width).noise_like(torch.zeros(2, 5, width)) for width in (48, 16)]
    torch.testing.assert_close(made.head(tokens), made.head([x.flip(1) for x in tokens]))
    assert not torch.allclose(made.head(tokens), made.head([tokens[0], tokens[1].square()]))


def test_a_query_attends_to_tokens_by_what_they_are() -> None:
    """Doubling one token among many changes more than its share of a mean would: here, that it is not the mean."""
    query, mean = (judge(heads=Heads(pool=pool)).head.pools[1] for pool in ("query", "mean"))  # type: ignore[arg-type, index]
    x = Rng.seeded(0).noise_like(torch.zeros(1, 6, 16))
    assert torch.allclose(mean(x), x.mean(1))
    logits = (query.query * query.to_k(query.norm(x))).sum(-1) / 4
    torch.testing.assert_close(query(x)[0], torch.softmax(logits[0], 0) @ query.to_v(query.norm(x))[0])


def test_samples_do_not_mix_and_time_and_condition_count() -> None:
    made, (z, t, c) = judge(), args()
    both = made.logits(z, t, c)
    torch.testing.assert_close(both[:1], made.logits(z[:1], t[:1], {"text": c["text"][:1]}))
    assert not torch.allclose(both, made.logits(z, t / 2, c))
    assert not torch.allclose(both, made.logits(z, t, {"text": c["text"] + 1}))


def test_heads_are_a_function_of_their_seed_alone() -> None:
    torch.manual_seed(0)
    first = judge().head.state_dict()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    second, other = judge().head.state_dict(), judge(heads=Heads(seed=1)).head.state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "norm" not in name)


def test_heads_are_float32_whatever_the_network_is() -> None:
    made = judge(Toy(shared=True), dtype=torch.bfloat16)
    assert {p.dtype for p in made.head.parameters()} == {torch.float32}
    assert made.logits(*args()).dtype == torch.float32
    made.logits(*args()).sum().backward()
    assert all(p.grad is not None for p in made.head.parameters())


# ---------------------------------------------------------------------- as a flow map it is the critic


@pytest.mark.parametrize("spec", [Toy(), Toy(causal=True)])
def test_as_a_flow_map_it_is_the_network(spec: Toy) -> None:
    made, (z, t, c) = judge(spec), args()
    assert torch.equal(made(z, t, t, c), made.u(z, t, t, c))
    assert made.chunks(4) == made.u.chunks(4) and list(made.blocks) == list(made.u.blocks)
    for ours, theirs in zip(made.extend(None, z, c) or (), made.u.extend(None, z, c) or (), strict=True):
        assert torch.equal(ours, theirs)
    assert made.teacher_forcing(z, c, Rng.seeded(0))[1].keys() == made.u.teacher_forcing(z, c, Rng.seeded(0))[1].keys()


@pytest.mark.parametrize("spec", [Toy(), Toy(shared=True)])
def test_it_trains_what_the_network_trains_and_the_head(spec: Toy) -> None:
    made = judge(spec)
    own, head = made.u.trained(), {f"judge.{name}" for name, _ in made.head.named_parameters()}
    assert made.trained().keys() == {*own, *head} and not head & {*own}
    assert all(made.trained()[name] is p for name, p in own.items())
    assert all(p.requires_grad for p in made.trained().values())


def test_thawing_reaches_the_network() -> None:
    spec = toy(Toy(shared=True))
    teacher = spec.build(ROLES, device=CPU, dtype=torch.float32)["teacher"]
    made = Heads()(teacher, one(1))
    made.thaw()
    assert made.u.trained().keys() == teacher.trained().keys() and len(teacher.trained()) > 0


@pytest.mark.parametrize("spec", SPECS)
def test_hooks_are_gone_after_the_call_and_other_roles_are_not_seen(spec: Toy) -> None:
    nets = equipped(toy(spec).build(ROLES, device=CPU, dtype=torch.float32), {"critic": Heads()}, one(1))
    made, (z, t, c) = nets["critic"], args()
    assert isinstance(made, Judge)
    before = made.logits(z, t, c)
    assert not any(block._forward_hooks for u in nets.values() for block in u.blocks)
    for role in ("student", "teacher", "critic"):
        nets[role](z, t, t, c)  # type: ignore[index]
    assert torch.equal(made.logits(z, t, c), before)


def test_hooks_are_gone_after_a_call_that_failed() -> None:
    made, (z, t, _) = judge(), args()
    with pytest.raises(KeyError):
        made.logits(z, t, {})
    assert not any(block._forward_hooks for block in made.blocks)


@pytest.mark.parametrize("spec", [Toy(), Toy(shared=True), Wan21(lora=None).tiny(), Wan21().tiny()])
def test_recomputation_in_the_backward_pass_changes_no_gradient(spec: Toy | Wan21) -> None:
    """Of parameters and of the sample; with a set of adapters active that is another's when the backward pass runs."""

    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        own = evolve(spec, checkpointing=checkpointing)
        own = toy(own) if isinstance(own, Toy) else own
        z, c = own.example(2)
        nets = own.build(ROLES, device=CPU, dtype=torch.float32)
        made = Heads()(nets["critic"], Batch(z, c, {}))
        z = z.requires_grad_()
        value = made.logits(z, T, c).square().sum() + made(z, T, T, c).square().sum()
        nets["student"](z, T, T, c)
        trained = made.trained()
        found = torch.autograd.grad(value, [z, *trained.values()], allow_unused=True)
        return {name: g for name, g in zip(["z", *trained], found, strict=True) if g is not None}

    with_, without = gradients(True), gradients(False)
    assert with_.keys() == without.keys() and {"z", "judge.out.weight"} <= with_.keys()
    assert all(torch.allclose(with_[name], without[name], atol=1e-6) for name in without)
    assert all(bool(g.any()) for name, g in without.items() if "judge" in name and "to_k.bias" not in name)


# ---------------------------------------------------------------------- what is wrong is said


@pytest.mark.parametrize("depths", [(), (0.0, 1.0), (0.5, 1.5), (1.0, 0.5), (0.5, 0.5)])
def test_depths_that_make_no_sense(depths: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"Heads.depths = .*: must increase, each above 0 and at most 1"):
        Heads(depths)


def test_a_network_without_blocks() -> None:
    u = Toy().build(ROLES, device=CPU, dtype=torch.float32)["critic"]
    with pytest.raises(ValueError, match="the network names no blocks"):
        Heads()(u, one(1))


class Unused(Named):
    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        return [torch.nn.Identity()]


class Mapped(Flat):
    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        return [self.outer]

    def __init__(self) -> None:
        super().__init__()
        self.outer = torch.nn.Module()
        self.outer.forward = lambda x: {"tokens": x}  # type: ignore[method-assign]

    def forward(self, z: Tensor, t: Tensor, r: Tensor, cond: object, cache: object = None) -> Tensor:
        self.outer(z)
        return z


def test_blocks_that_do_not_run_or_give_out_something_else() -> None:
    u = Toy(network=Unused).build(ROLES, device=CPU, dtype=torch.float32)["critic"]
    with pytest.raises(TypeError, match="block 0 gave out nothing: it did not run: heads need its tokens"):
        Heads()(u, one(1))
    with pytest.raises(TypeError, match="block 0 gave out a dict"):
        Heads()(Mapped(), one(1))


def test_a_critic_without_heads_is_named() -> None:
    nets = toy().build(ROLES, device=CPU, dtype=torch.float32)
    with pytest.raises(TypeError, match="the critic is a Named and has no heads"):
        Adversarial()(nets, one(), Rng.seeded(0), Shared())


# ---------------------------------------------------------------------- how it gets there

ROLLOUT = ConsistencySimulation((1.0,))  # type: ignore[arg-type]
OTHER = Heads(pool="mean")


def methods(first: Heads, second: Heads) -> tuple[Method, Method]:
    return (
        Method("one", (Update("student", ((1.0, Adversarial(ROLLOUT, first)),)),)),
        Method(
            "two",
            (
                Update(
                    "critic",
                    (
                        (
                            1.0,
                            OneRollout(((1.0, Discrimination(ROLLOUT, second)),)),
                        ),
                    ),
                ),
            ),
        ),
    )


def test_a_method_says_how_it_equips_whom() -> None:
    assert dmd2().equips.keys() == {"critic"} and dmd2(heads=OTHER).equips["critic"] == OTHER
    assert not dmd2(gan=0.0, gan_critic=0.0).equips and not anyflow.on_policy().equips
    assert "flowmap_consistency.heads.Heads" in str(describe(dmd2()))


def test_objectives_that_equip_a_role_differently_are_an_error_where_they_meet() -> None:
    one, two = methods(Heads(), OTHER)
    with pytest.raises(ValueError, match=r"both equips the critic as Heads\(.*'query'.* and as Heads\(.*'mean'"):
        Method("both", (*one.updates, *two.updates))
    with pytest.raises(ValueError, match="OneRollout equips the critic as"):
        OneRollout(((1.0, Adversarial(ROLLOUT, Heads())), (1.0, Discrimination(ROLLOUT, OTHER)))).equips  # noqa: B018
    with pytest.raises(ValueError, match=r"Recipe.stages equips the critic as"):
        Recipe(toy(), (Stage(one, 1), Stage(two, 1)))
    assert Recipe(toy(), (Stage(methods(OTHER, OTHER)[0], 1), Stage(two, 1))).equips == {"critic": OTHER}


# ---------------------------------------------------------------------- trained, saved and resumed

QUIET = manager(entry_points=False)
STEPS = 4


def recipe(spec: Toy, steps: int = STEPS) -> Recipe:
    """A stage without heads, in which the teacher learns too, and one with."""
    stages = [
        Stage(method, steps, batch=4, micro=2, optimizer=AdamW(lr=1e-2), ema=Ema(0.5, start=1))
        for method in (anyflow.teacher(), dmd2(number=2, every=2, gan_critic=1.0))
    ]
    return Recipe(toy(spec), tuple(stages))


class Killed(BaseException):
    """As good as kill -9."""


@define
class Deadly:
    n: int

    def __len__(self) -> int:
        return 16

    def batch(self, index: Sequence[int]) -> Batch:
        self.n -= 1
        if self.n < 0:
            raise Killed
        return data(16).batch(index)


def run(spec: Toy, out: Path, kill: int | None = None) -> dict[str, Tensor]:
    """Everything in the last checkpoint, and the student."""
    seen = data(16) if kill is None else Deadly(kill)
    student = distill(recipe(spec), seen, out=out, save_minutes=0, device="cpu", pm=QUIET)
    (newest,) = (sorted((out / "checkpoints").glob("step_*"))[-1] / "state").iterdir()
    return load_file(newest) | {f"result/{n}": p.detach() for n, p in student.named_parameters()}


@pytest.mark.parametrize("spec", [Toy(), Toy(shared=True)])
@pytest.mark.parametrize("kill", [1 + 2, 1 + 2 * STEPS + 2, 1 + 2 * STEPS + 4 + 2 + 1])
def test_a_run_with_heads_that_was_killed_ends_as_if_it_had_not_been(spec: Toy, kill: int, tmp_path: Path) -> None:
    """In the stage before, after the first iteration with heads, and after the second (4 + 2 micro-batches)."""
    whole = run(spec, tmp_path / "whole")
    with pytest.raises(Killed):
        run(spec, tmp_path / "parts", kill)
    parts = run(spec, tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert {"critic/judge.out.weight", "optim/critic/exp_avg/judge.out.weight"} <= whole.keys()
    fresh = judge(spec, dmd2().equips["critic"]).trained()  # type: ignore[arg-type]
    moved = [n for n, p in fresh.items() if n.startswith("judge") and not torch.equal(p, whole[f"critic/{n}"])]
    assert len(moved) == len([name for name in fresh if name.startswith("judge")])


def test_the_student_that_comes_out_is_the_backbones_own_and_a_finished_run_needs_no_heads(tmp_path: Path) -> None:
    whole = run(Toy(), tmp_path)
    again = run(Toy(), tmp_path, kill=0)  # no batch is asked for
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert type(distill(recipe(Toy(), 1), data(16), device="cpu", pm=QUIET)) is Named


@pytest.mark.parametrize("spec", [Toy(), Toy(shared=True)])
def test_a_critic_with_heads_starts_as_the_teacher_that_was_fine_tuned(spec: Toy, tmp_path: Path) -> None:
    made = recipe(spec)
    seen: dict[int, dict[str, Tensor]] = {}

    class Plugin:
        @staticmethod
        @hookimpl
        def flowmap_train_start(trainer: object) -> None:
            z, t, c = args()
            with torch.no_grad():
                nets = trainer.nets  # type: ignore[attr-defined]
                seen[trainer.number] = {role: nets[role](z, t, t, c) for role in ("teacher", "critic")}  # type: ignore[attr-defined]

    distill(made, data(16), device="cpu", pm=manager(Plugin(), entry_points=False))
    assert torch.equal(seen[1]["critic"], seen[1]["teacher"]) and not torch.equal(
        seen[1]["teacher"], seen[0]["teacher"]
    )


def test_without_anything_to_equip_nothing_is_wrapped() -> None:
    made = Recipe(toy(), (Stage(dmd2(gan=0.0, gan_critic=0.0), 1, batch=2),))
    distill(made, Deadly(3), device="cpu", pm=QUIET)  # one to see that it fits, one for the student, one for the critic
    assert isinstance(build(made, CPU, torch.float32)["critic"], ToyFlowMap)
