"""Ranks that share the tokens of their samples: the result of one, whatever is shared, and what cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_consistency.dmd2 import dmd2
from flowmap_wan21 import Wan21
from safetensors.torch import load_file

from flowmap import Recipe, TensorData, distill
from flowmap.cli import main
from flowmap.context_parallel import Context, overlap
from flowmap.recipe import RecipeError
from flowmap.training.pace import MEMORY, SPEED
from flowmap.training.ranks.context_groups import context, unsplit
from flowmap.training.ranks.distributed import Distribution
from tests.fault import harness
from tests.fault.harness import KILLED, _port, final_hash, newest, run, status, tensors_of
from tests.toys import Toy, data

from . import context_jobs as jobs
from .cases import CASES, LR, recipe
from .context_jobs import FOUR, SHARED
from .test_parity import alone as alone_of

SLOW = pytest.mark.slow
ROUNDING = LR / 25  # of weights: Adam divides a small gradient, and what rounding adds to it, by its size
TINY = """
from flowmap import Recipe, Stage, TensorData
from flowmap.methods import anyflow
from flowmap.plugins import backbone

spec = backbone("wan21").tiny()
x, cond = spec.example(4)
data = TensorData(x, dict(cond), {"text": 0 * cond["text"][:1]})
RECIPE = Recipe(spec, (Stage(anyflow.forward(), 2, batch=1),), data=data)
"""


@lru_cache
def alone(name: str) -> dict[str, torch.Tensor]:
    if name in CASES:
        return dict(alone_of(name))
    return {key: p.detach() for key, p in distill({**SHARED, **FOUR}[name], device="cpu").trained().items()}


@pytest.fixture(scope="module", autouse=True)
def _patience() -> Iterator[None]:
    """Several trainings one after the other, of networks of diffusers'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "PATIENCE", 400.0)
        yield


# ---------------------------------------------------------------------- the arithmetic of shares
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shares_are_equally_long_and_in_a_row(tokens: int, size: int) -> None:
    x = torch.arange(1.0, tokens + 1).reshape(1, tokens, 1)
    parts = [Context(size, rank).share(tokens).own(x) for rank in range(size)]
    assert len({part.shape for part in parts}) == 1
    together = torch.cat(parts, 1)
    assert torch.equal(together[:, :tokens], x) and not together[:, tokens:].any()


def test_a_share_is_a_copy() -> None:
    """A view of it would keep the tokens of all ranks in memory."""
    x = torch.zeros(1, 8, 2)
    assert Context(2, 1).share(8).own(x).untyped_storage().nbytes() == x.untyped_storage().nbytes() // 2


@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [5, 1, 6], [1, 10]])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_groups_of_tokens_stay_what_they_are(sizes: list[int], size: int) -> None:
    number = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    for rank in range(size):
        share = Context(size, rank).share(sum(sizes))
        here, own = share.groups(sizes)
        assert sum(own) == share.length and min(own) > 0
        found = torch.arange(len(sizes))[here].repeat_interleave(torch.tensor(own))
        real = number[share.first : share.first + share.length]
        assert torch.equal(found[: len(real)], real)


def test_groups_behind_a_place() -> None:
    assert overlap([5, 2, 2], 5, 9) == (slice(1, 3), [2, 2])
    assert overlap([5, 2, 2], 6, 9) == (slice(1, 3), [1, 2])


# ---------------------------------------------------------------------- two processes
@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    out = tmp_path_factory.mktemp("asked") / "run"
    end = run(out, ranks=2, job=jobs.ask)
    assert end.code == 0, end.said
    found: dict[str, float] = json.loads((out / "answers.json").read_text())
    return found


@pytest.mark.timeout(300)
def test_a_network_says_the_same_and_has_the_same_gradients(told: dict[str, float]) -> None:
    taken = {"forward", "backward", "backward, recomputed", "kept"}
    off = {question: far for question, far in told.items() if question not in taken and not far < 1e-6}
    assert not off
    assert len(told) > 100 and {name.partition(":")[0] for name in told} >= {"even", "uneven", "causal, spans"}


def test_a_layer_takes_two_exchanges_and_a_call_one_more(told: dict[str, float]) -> None:
    layers = Wan21().tiny().config["num_layers"]
    assert told["forward"] == told["backward"] == 2 * layers + 1
    assert told["backward, recomputed"] == 4 * layers + 1


def test_two_ranks_keep_half_of_the_activations_each(told: dict[str, float]) -> None:
    assert 0.5 <= told["kept"] < 0.56


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    @lru_cache
    def train(ranks: int) -> Path:
        out = tmp_path_factory.mktemp(f"context{ranks}") / "run"
        end = run(out, ranks=ranks, job=partial(jobs.train, cases=FOUR if ranks == 4 else SHARED))
        assert end.code == 0, end.said
        return out

    return train


def runs() -> list[Any]:
    two = [pytest.param(2, name) for name in SHARED]
    return [*two, *(pytest.param(4, name, marks=SLOW) for name in FOUR)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "name"), runs(), ids=str)
def test_the_result_does_not_know_who_had_which_tokens(ranks: int, name: str, trained: Callable[[int], Path]) -> None:
    one, many = alone(name), load_file(trained(ranks) / f"{name}.safetensors")
    assert one.keys() == many.keys()
    for key, value in one.items():
        torch.testing.assert_close(many[key], value, rtol=0, atol=ROUNDING)


# ---------------------------------------------------------------------- a run that stops and goes on
@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    end = run(out, ranks=2, job=partial(jobs.go_on, size=2))
    assert end.code == 0, end.said
    return out


@pytest.mark.timeout(300)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path, uninterrupted: Path) -> None:
    out = tmp_path / "run"
    end = run(out, "critic.after:2@1", ranks=2, job=partial(jobs.go_on, size=2))
    assert end.codes[1] == KILLED and end.codes[0] == 1 and "Traceback" not in end.said, end.said
    end = run(out, ranks=2, job=partial(jobs.go_on, size=2))
    assert end.code == 0, end.said
    assert final_hash(out) == final_hash(uninterrupted)
    assert status(out)["hash"] == status(uninterrupted)["hash"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("before", "after"),
    [((2, 2), (1, 1)), pytest.param((1, 1), (2, 2), marks=SLOW), pytest.param((2, 2), (2, 1), marks=SLOW)],
)
def test_a_run_goes_on_with_another_context(
    before: tuple[int, int], after: tuple[int, int], tmp_path: Path, uninterrupted: Path
) -> None:
    """Each (ranks, how many of them share a sample)."""
    out = tmp_path / "run"
    ranks, size = before
    assert KILLED in run(out, "critic.after:1", ranks=ranks, job=partial(jobs.go_on, size=size)).codes
    ranks, size = after
    end = run(out, ranks=ranks, job=partial(jobs.go_on, size=size))
    assert end.code == 0, end.said
    found, whole = tensors_of(newest(out)), tensors_of(newest(uninterrupted))
    assert found.keys() == whole.keys()
    for name in found:
        if not name.startswith("optim/"):
            torch.testing.assert_close(found[name], whole[name], rtol=0, atol=1e-6)
    for mine, theirs in zip(records(out), records(uninterrupted), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def records(out: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in ("time", SPEED, MEMORY)} for line in lines]


# ---------------------------------------------------------------------- what cannot be shared
def test_one_rank_has_no_context() -> None:
    assert context(Distribution()) is None


@pytest.mark.parametrize(
    ("world", "size", "batches", "message"),
    [
        (1, 2, [4], "Distribution.context = 2: so many processes share a sample, and there is 1; start a multiple"),
        (6, 4, [6], "Distribution.context = 4: so many processes share a sample, and there are 6; start a multiple of"),
        (8, 2, [6], "batch = 6 of stage 0 does not divide over 8 processes, 2 of which share a sample: start 2, 4, 6"),
    ],
)
def test_processes_that_form_no_contexts(world: int, size: int, batches: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distribution(context=size).check(world, batches)


def test_more_ranks_than_samples() -> None:
    Distribution(context=4).check(8, [2])


def heads(n: int) -> Recipe:
    made = recipe(Wan21(), CASES["bidirectional, whole"].stages[0].method)
    return evolve(made, backbone=evolve(made.backbone, config={**Wan21().tiny().config, "num_attention_heads": n}))


def test_heads_must_divide() -> None:
    assert unsplit(heads(12), 4) == []
    (said,) = unsplit(heads(12), 8)
    assert "the network has 12 attention heads, as many for each: must be one of 2, 3, 4, 6, 12" in said
    assert unsplit(evolve(heads(12), backbone=Wan21("Wan-AI/Wan2.1-T2V-14B-Diffusers")), 8) == []
    (said,) = unsplit(evolve(heads(12), teacher=Wan21("Wan-AI/Wan2.1-T2V-14B-Diffusers")), 3)
    assert "40 attention heads" in said


def test_a_backbone_that_cannot_and_heads_that_judge() -> None:
    x, cond = Toy().example(4)
    made = Recipe(Toy(), CASES["bidirectional, whole"].stages[:1], data=TensorData(x, cond, {}))
    (said,) = unsplit(made, 2)
    assert said.startswith("context = 2, ranks that share a sample's tokens: Toy cannot")
    (said,) = unsplit(recipe(Wan21(), dmd2(number=2, gan=0.1)), 2)
    assert "the critic of this recipe is judged by the tokens of its blocks" in said
    assert unsplit(made, 1) == []


def test_everything_wrong_is_said_at_once_before_any_work() -> None:
    with pytest.raises(RecipeError) as caught:
        distill(evolve(CASES["bidirectional, whole"], backbone=Toy()), data(), distribution=Distribution(context=2))
    assert len(caught.value.errors) == 2


# ---------------------------------------------------------------------- the command line
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--context", "2"], "Distribution.context = 2: so many processes share a sample, and there is 1"),
        (["--context", "0"], "argument --context: 0: must be a whole number, at least 1"),
        (["--context", "3", "--plan"], "context = 3, ranks that share a sample's tokens"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["distill", "tiny_wan", "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_line_shares(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(_port())]
    (tmp_path / "tiny.py").write_text(TINY)
    command += ["-m", "flowmap", "distill", str(tmp_path / "tiny.py"), "--out", str(tmp_path / "run")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([*command, "--context", "2"], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert status(tmp_path / "run")["state"] == "finished"
