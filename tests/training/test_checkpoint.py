"""A run that is killed goes on as if it had not been; a damaged checkpoint is found before anything changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pluggy
import pytest
import torch
from attrs import define, evolve
from safetensors.torch import load_file
from torch import Tensor

from flowmap import AdamW, Batch, Ema, FlowMapSpec, Recipe, Stage, TensorData, distill
from flowmap.methods import anyflow
from flowmap.objectives import Networks
from flowmap.plugins import manager
from flowmap.recipe import digest
from flowmap.training.loop import Trainer
from flowmap.training.pace import MEMORY, SPEED
from flowmap.training.ranks.networks import build
from flowmap.training.run import Run
from flowmap.training.saving import Saves
from flowmap.training.store import checkpoint
from flowmap.training.store.checkpoint import CheckpointError
from flowmap.training.store.manifest import Manifest
from tests.toys import Toy, data

SHARD = "state/shard-00001-model-00001-of-00001.safetensors"
STEPS = 3  # of each of three stages
QUIET = manager(entry_points=False)


def recipe(spec: Toy | None = None, seed: int = 0) -> Recipe:
    """Teacher, forward, on-policy: what is trained, averaged and inherited differs from stage to stage."""
    methods = (anyflow.teacher(), anyflow.forward(), anyflow.on_policy(steps=(2, 4)))
    stages = [
        Stage(method, STEPS, batch=4, micro=2, optimizer=AdamW(lr=1e-3, warmup=1), ema=Ema(0.5, start=1))
        for method in methods
    ]
    return Recipe(spec or Toy(shared=True), tuple(stages), seed=seed)


class Killed(BaseException):
    """As good as kill -9 to what was written so far."""


@define
class Deadly:
    """Data that kill the run at their n-th batch."""

    data: TensorData
    n: int

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, index: Sequence[int]) -> Batch:
        self.n -= len(index) > 1  # not the one sample that is looked at before training
        if self.n < 0:
            raise Killed
        return self.data.batch(index)


def run(out: Path, pm: pluggy.PluginManager = QUIET, **options: object) -> dict[str, Tensor]:
    """The student, and everything in the last checkpoint: critic, averages, optimisers."""
    made: Recipe = options.pop("recipe", None) or recipe()  # type: ignore[assignment]
    seen = options.pop("data", None) or data()
    student = distill(made, seen, out=out, save_minutes=0, device="cpu", pm=pm)  # type: ignore[arg-type]
    tensors = tensors_of(newest(out))
    return tensors | {f"result/{name}": p.detach() for name, p in student.named_parameters()}


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Everything in a checkpoint that one process wrote."""
    (file,) = (path / "state").iterdir()
    return load_file(file)


def newest(out: Path) -> Path:
    return sorted(p for p in (out / "checkpoints").glob("step_*") if p.suffix != ".corrupt")[-1]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return run(tmp_path_factory.mktemp("whole"))


# Batches of an iteration: two micro-batches, of one update or of two.
KILLS = {
    "before anything": 0,
    "inside the first iteration": 1,
    "inside the first stage": 3,
    "at its end": 2 * STEPS,
    "inside the second stage": 2 * STEPS + 2,
    "at the second border": 4 * STEPS,
    "between student and critic": 4 * STEPS + 4 + 2,
    "in the last iteration": 4 * STEPS + 4 * STEPS - 1,
}


@pytest.mark.parametrize("n", KILLS.values(), ids=KILLS.keys())
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(
    n: int, tmp_path: Path, uninterrupted: dict[str, Tensor]
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, data=Deadly(data(), n))
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed" and status["reason"].startswith("Killed") and status["resumable"]
    assert same(run(tmp_path), uninterrupted)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def test_a_run_that_was_killed_twice_does_too(tmp_path: Path, uninterrupted: dict[str, Tensor]) -> None:
    for n in (5, 9):
        with pytest.raises(Killed):
            run(tmp_path, data=Deadly(data(), n))
    assert same(run(tmp_path), uninterrupted)


def test_its_metrics_are_those_of_one_run(tmp_path: Path) -> None:
    def records(out: Path) -> list[dict[str, float]]:
        found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in r.items() if k not in ("time", SPEED, MEMORY)} for r in found]

    run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "parts", data=Deadly(data(), 4 * STEPS + 5))
    run(tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_a_run_whose_last_step_was_saved_but_not_its_student_writes_the_student(
    tmp_path: Path, uninterrupted: dict[str, Tensor]
) -> None:
    run(tmp_path)
    for file in (tmp_path / "student").iterdir():
        file.unlink()
    assert same(run(tmp_path), uninterrupted)
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_only_what_is_trained_is_written_and_two_checkpoints_are_kept_and_the_end_of_every_stage(
    tmp_path: Path,
) -> None:
    run(tmp_path)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step_0{k}_0000000{i}" for k, i in ((0, STEPS), (1, STEPS), (2, STEPS - 1), (2, STEPS))]
    tensors = tensors_of(newest(tmp_path))
    assert not any("sets" not in name for name in tensors if name.partition("/")[0] in ("student", "teacher", "critic"))
    assert {name.partition("/")[0] for name in tensors} == {"student", "teacher", "critic", "ema", "optim"}


class Watch:
    """Sees the networks when a stage starts."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, Tensor]] = {}


def watching(watch: Watch) -> pluggy.PluginManager:
    from flowmap import hookimpl

    class Plugin:
        @staticmethod
        @hookimpl
        def flowmap_train_start(trainer: object) -> None:
            z, c = Toy().example()
            t = torch.full((2,), 0.7)
            with torch.no_grad():
                nets = trainer.nets  # type: ignore[attr-defined]
                watch.seen[trainer.number] = {role: u(z, t, t, c) for role, u in nets.items()}  # type: ignore[attr-defined]

    return manager(Plugin(), entry_points=False)


@pytest.mark.parametrize("spec", [Toy(), Toy(shared=True)])
def test_a_critic_starts_as_the_teacher_that_was_fine_tuned(spec: Toy, tmp_path: Path) -> None:
    watch = Watch()
    run(tmp_path, watching(watch), recipe=recipe(spec))
    seen = watch.seen
    assert torch.equal(seen[0]["critic"], seen[0]["teacher"])
    assert not torch.equal(seen[2]["teacher"], seen[0]["teacher"])
    assert torch.equal(seen[2]["critic"], seen[2]["teacher"])
    assert torch.equal(seen[1]["teacher"], seen[2]["teacher"])  # frozen again


def test_a_resumed_critic_does_not_start_again(tmp_path: Path) -> None:
    watch = Watch()
    with pytest.raises(Killed):
        run(tmp_path, data=Deadly(data(), 4 * STEPS + 4 + 1))
    run(tmp_path, watching(watch))
    assert not torch.equal(watch.seen[2]["critic"], watch.seen[2]["teacher"])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def other_values(file: Path) -> None:
    """A file of the same size, which nothing but its hash tells from what was written."""
    if file.suffix == ".safetensors":
        content, values = bytearray(file.read_bytes()), load_file(file)
        start = 8 + int.from_bytes(content[:8], "little")
        for name, said in json.loads(content[8:start]).items():
            if name != "__metadata__":
                first, end = (start + offset for offset in said["data_offsets"])
                content[first:end] = (values[name] + 1).numpy().tobytes()
        file.write_bytes(content)
    else:
        file.write_text(file.read_text().replace("1", "2"))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped bit": flip,
    "a torn file": truncate,
    "an empty file": lambda file: file.write_bytes(b"") and None,
    "no file": Path.unlink,
    "other values": other_values,
}
FILES = [SHARD, "train_state.json", "MANIFEST.json"]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_taken(
    file: str, damage: Callable[[Path], None], tmp_path: Path, uninterrupted: dict[str, Tensor]
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, data=Deadly(data(), 2 * STEPS + 4))
    damaged = newest(tmp_path)
    damage(damaged / file)
    assert same(run(tmp_path), uninterrupted)
    assert any(p.name.startswith(damaged.name) for p in (tmp_path / "checkpoints").glob("*.corrupt"))


def test_if_none_is_whole_that_is_an_error_and_stays_one(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, data=Deadly(data(), 2 * STEPS + 4))
    for path in (tmp_path / "checkpoints").glob("step_*"):
        flip(path / SHARD)
    for _ in range(2):  # not a fresh start at the second attempt
        with pytest.raises(CheckpointError, match=r"no checkpoint is whole; 3 are kept as \*.corrupt"):
            run(tmp_path)


def test_one_that_was_never_finished_does_not_count(tmp_path: Path, uninterrupted: dict[str, Tensor]) -> None:
    with pytest.raises(Killed):
        run(tmp_path, data=Deadly(data(), 4))
    (tmp_path / "checkpoints" / ".tmp-step_00_00000099-abc").mkdir()
    assert same(run(tmp_path), uninterrupted)


@pytest.mark.parametrize(
    "other", [recipe(seed=1), recipe(Toy(shared=True, width=8)), evolve(recipe(), stages=recipe().stages[:2])]
)
def test_another_recipes_checkpoint_is_refused_and_nothing_of_that_run_is_touched(
    other: Recipe, tmp_path: Path
) -> None:
    run(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match="is of another recipe"):
        run(tmp_path, recipe=other)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


class Judge:
    """Judges nothing."""

    def __call__(self, nets: Networks, backbone: FlowMapSpec, out: Path) -> None: ...

    def written(self, out: Path) -> bool:
        return True

    def quick(self) -> Judge:
        return self


def test_how_a_recipe_is_judged_does_not_change_what_it_is() -> None:
    assert digest(recipe()) == digest(evolve(recipe(), evaluation=Judge()))
    assert digest(recipe()) != digest(recipe(seed=1))


def test_publishing_twice_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    final = newest(tmp_path)
    before = (final / SHARD).stat().st_mtime_ns
    run(tmp_path)
    assert (newest(tmp_path) / SHARD).stat().st_mtime_ns == before


def test_a_save_of_what_is_published_is_through_at_once(tmp_path: Path) -> None:
    """Nothing is written beside training then, and nothing is left to wait for."""
    run(tmp_path)
    trainer, weights, saves = saving(tmp_path)
    saves.save(trainer, weights, STEPS, last=False, wait=False)
    saves.agreed(False)
    assert saves.newest == newest(tmp_path)


def test_a_save_that_fails_by_surprise_is_not_waited_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(listed: Manifest, path: Path) -> None:
        raise Killed

    monkeypatch.setattr(Manifest, "write", surprise)
    trainer, weights, saves = saving(tmp_path)
    saves.save(trainer, weights, 1, last=False, wait=False)
    with pytest.raises(Killed):
        saves.wait()
    saves.leave()
    assert saves.newest is None and not checkpoint.published(tmp_path / "checkpoints")


def saving(out: Path) -> tuple[Trainer, checkpoint.Weights, Saves]:
    """The last stage as it begins."""
    made = recipe()
    nets = build(made, torch.device("cpu"), torch.float32)
    trainer = Trainer(nets, made.stages[-1], data(), 0, len(made.stages) - 1, torch.device("cpu"))
    weights = {role: u.trained() for role, u in nets.items()}
    return trainer, weights, Saves(out / "checkpoints", digest(made), Run(out))


def ended(out: Path, number: int) -> dict[str, Tensor]:
    """The student of a run at the end of a stage."""
    made = recipe()
    nets = build(made, torch.device("cpu"), torch.float32)
    found = checkpoint.stage_end(out / "checkpoints", number, digest(made))
    checkpoint.restore_weights(found, {"student": nets["student"].trained()}, averaged=True)
    return {name: p.detach().clone() for name, p in nets["student"].trained().items()}


def test_the_end_of_a_stage_is_what_a_run_of_the_stages_up_to_it_gives(tmp_path: Path) -> None:
    run(tmp_path / "all")
    both = evolve(recipe(), stages=recipe().stages[:2])
    expected = distill(both, data(), device="cpu", pm=QUIET).trained()
    assert same(ended(tmp_path / "all", 1), {name: p.detach() for name, p in expected.items()})
    assert not same(ended(tmp_path / "all", 1), ended(tmp_path / "all", 0))
    assert not same(ended(tmp_path / "all", 2), ended(tmp_path / "all", 1))


def test_a_stage_end_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, data=Deadly(data(), 2 * STEPS + 4))
    with pytest.raises(CheckpointError, match="step_01_00000002 is not the end of stage 1, which stopped before it"):
        ended(tmp_path, 1)
    with pytest.raises(CheckpointError, match="has no checkpoint of stage 2"):
        ended(tmp_path, 2)
    with pytest.raises(CheckpointError, match="is of another recipe"):
        checkpoint.stage_end(tmp_path / "checkpoints", 0, "other")
    flip(tmp_path / "checkpoints" / f"step_00_0000000{STEPS}" / SHARD)
    before = sorted((tmp_path / "checkpoints").iterdir())
    with pytest.raises(CheckpointError, match="what stage 0 ended with is lost"):
        ended(tmp_path, 0)
    assert sorted((tmp_path / "checkpoints").iterdir()) == before


def test_there_may_be_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nowhere", "digest") is None
