"""R2 and R3: a save that was cut off at any of its writes, and checkpoints that are not what was written."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmap.recipe import digest
from flowmap.training.loop import Trainer
from flowmap.training.ranks.networks import build
from flowmap.training.store import checkpoint, shards
from tests.toys import data

from .harness import finished, newest, recipe, run, status, tensors_of

CALLS = {"write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir", "rmtree", "truncate", "flush"}
Tree = Mapping[str, bytes | None]


class Disk:
    """What is in a directory after every call that touches files, as a process that is killed there leaves it.

    And as a machine that loses its power does: of what was not synchronised, half a file is there, and names that are
    new in the directory are not.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.states: list[Tree] = [tree(root)]
        self.synced = dict(self.states[0])
        self.names = {name.partition("/")[0] for name in self.states[0]}

    def __enter__(self) -> Disk:
        self._fsync = os.fsync
        os.fsync = self._seen_fsync
        threading.setprofile(self._called)  # of the threads that write
        sys.setprofile(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        os.fsync = self._fsync

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_return" and getattr(argument, "__name__", "") in CALLS:
            self._look()

    def _seen_fsync(self, handle: int) -> None:
        self._fsync(handle)
        name = os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), self.root)
        if name == ".":
            self.names = {path.name for path in self.root.iterdir()}
        elif (self.root / name).is_file():
            content = (self.root / name).read_bytes()
            self.synced[name] = content
            top, _, inside = name.partition("/")
            self.synced[f"{top.removeprefix('.tmp-').rpartition('-')[0] or top}/{inside}"] = content
        self._look()

    @property
    def durable(self) -> Tree:
        return self._without_power(tree(self.root))

    def _look(self) -> None:
        now = tree(self.root)
        for state in (now, self._without_power(now)):
            if state not in self.states[-2:]:
                self.states.append(state)

    def _without_power(self, now: Tree) -> Tree:
        kept = {name: content for name, content in now.items() if name.partition("/")[0] in self.names}
        return {
            name: content if content is None or self.synced.get(name) == content else content[: len(content) // 2]
            for name, content in kept.items()
        }


def tree(root: Path) -> Tree:
    found: dict[str, bytes | None] = {}
    for path in sorted(root.rglob("*")):
        try:
            found[str(path.relative_to(root))] = path.read_bytes() if path.is_file() else None
        except FileNotFoundError:
            continue
    return found


def rebuilt(state: Tree, at: Path) -> Path:
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir()
    for name, content in state.items():
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True) if content is None else path.write_bytes(content)
    return at


def trainer() -> tuple[Trainer, checkpoint.Weights]:
    made = recipe()
    nets = build(made, torch.device("cpu"), torch.float32)
    nets["teacher"].thaw()
    weights = {role: nets[role].trained() for role in sorted(made.trains)}
    return Trainer(nets, made.stages[2], data(), 0, 2), weights


def live(of: Trainer, weights: checkpoint.Weights) -> dict[str, Tensor]:
    found = {f"{role}/{name}": p.detach().clone() for role, its in weights.items() for name, p in its.items()}
    return found | {f"ema/{role}/{n}": v.clone() for role, a in of.averages.items() for n, v in a.tensors.items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.row("R2")
def test_a_save_that_is_cut_off_anywhere_leaves_the_one_before_or_the_new_one(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    of, weights = trainer()
    key, folder = digest(recipe()), tmp_path / "checkpoints"
    for iteration in range(2):
        of.step(iteration)
        checkpoint.save(folder, of, weights, iteration + 1, key)
    before = live(of, weights)
    of.step(2)
    after = live(of, weights)
    assert not same(before, after)
    with Disk(folder) as disk:
        checkpoint.save(folder, of, weights, 3, key)
    seen = []
    for state in (*disk.states, disk.durable):
        at = rebuilt(state, tmp_path / "rebuilt")
        found = checkpoint.latest(at, key)
        assert found is not None
        fresh, own = trainer()
        checkpoint.restore_weights(found, own)
        checkpoint.restore_trainer(found, fresh)
        assert same(live(fresh, own), before if found.iteration == 2 else after)
        seen.append(found.iteration)
    assert len(seen) > 15 and seen[0] == 2 and seen[-1] == 3 and set(seen) == {2, 3}
    record_property("tries", len(seen))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    file.write_bytes(content)


def zero_a_page(file: Path) -> None:
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    page = min(4096, len(content) // 4)
    content[middle : middle + page] = bytes(page)
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a truncated file": truncate,
    "a flipped bit": flip,
    "a zeroed page": zero_a_page,
    "an empty file": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"{garbage"),
    "no file": Path.unlink,
    "another file": lambda file: file.write_bytes(newest_but_one(file).read_bytes()),
    "one more file": lambda file: file.with_name(f"{file.name}.more").write_bytes(b""),
}


def newest_but_one(file: Path) -> Path:
    """The file of that name in the checkpoint before."""
    top = next(parent for parent in file.parents if parent.name.startswith("step_"))
    found = checkpoint.published(top.parent)
    return found[found.index(top) - 1] / file.relative_to(top)


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def stopped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run that was killed in its last stage."""
    out, ranks = tmp_path_factory.mktemp("stopped") / "run", int(request.param)
    assert run(out, f"data.next:{20 // ranks}", ranks=ranks).code
    return out, ranks


FILES = ("state/0", "state/-1", "train_state.json", "MANIFEST.json")


def file_of(path: Path, name: str) -> Path:
    folder, _, number = name.partition("/")
    return sorted((path / "state").iterdir())[int(number)] if folder == "state" else path / name


@pytest.mark.row("R3")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_the_one_before_is_taken(
    name: str, damage: Callable[[Path], object], stopped: tuple[Path, int], tmp_path: Path
) -> None:
    at = shutil.copytree(stopped[0] / "checkpoints", tmp_path / "checkpoints")
    *_, before, last = checkpoint.published(at)
    damage(file_of(last, name))
    damaged = tree(last)
    found = checkpoint.latest(at, digest(recipe()))
    assert found is not None and found.path == before
    (said,) = found.passed
    assert said.startswith(f"{last.name} is damaged (")
    (aside,) = at.glob("*.corrupt")
    assert aside.name.startswith(last.name) and tree(aside) == damaged  # kept as it is


@pytest.mark.row("R3")
def test_shards_that_change_places_are_found(stopped: tuple[Path, int], tmp_path: Path) -> None:
    at = shutil.copytree(stopped[0] / "checkpoints", tmp_path / "checkpoints")
    *_, before, last = checkpoint.published(at)
    if stopped[1] == 1:
        other, own = newest_but_one(file_of(last, "state/0")), file_of(last, "state/0")
    else:
        other, own = file_of(last, "state/0"), file_of(last, "state/1")
    aside = other.read_bytes()
    other.write_bytes(own.read_bytes())
    own.write_bytes(aside)
    found = checkpoint.latest(at, digest(recipe()))
    assert found is not None and found.path not in (last, before if stopped[1] == 1 else last)


@pytest.mark.row("R3")
def test_a_directory_under_another_name_is_found(stopped: tuple[Path, int], tmp_path: Path) -> None:
    at = shutil.copytree(stopped[0] / "checkpoints", tmp_path / "checkpoints")
    last = checkpoint.published(at)[-1]
    shutil.copytree(last, at / "step_02_00000099")
    found = checkpoint.latest(at, digest(recipe()))
    assert found is not None and found.path == last and f"it is {last.name}" in found.passed[0]


@pytest.mark.row("R3")
def test_a_run_says_what_it_passed_over_and_ends_as_if_nothing_had_been(
    stopped: tuple[Path, int], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out, ranks = tmp_path / "run", stopped[1]
    shutil.copytree(stopped[0], out)
    last = newest(out)
    flip(file_of(last, "state/0"))
    ended = finished(out, ranks=ranks)
    (note,) = (note for note in status(out)["notes"] if "damaged" in note)  # type: ignore[attr-defined]
    assert note.startswith(f"{last.name} is damaged (state/") and "is not what was written" in note
    assert note in out.with_name("run.log").read_text()
    assert ended == finished(tmp_path / "whole", ranks=ranks)


@pytest.mark.row("R3")
def test_nothing_live_has_changed_when_none_is_whole(stopped: tuple[Path, int], tmp_path: Path) -> None:
    at = shutil.copytree(stopped[0] / "checkpoints", tmp_path / "checkpoints")
    for path in checkpoint.published(at):
        flip(file_of(path, "state/0"))
    for _ in range(2):
        with pytest.raises(checkpoint.CheckpointError, match="no checkpoint is whole"):
            checkpoint.latest(at, digest(recipe()))


@pytest.mark.row("R3")
def test_a_tensor_of_another_shape_is_named_before_any_changes(tmp_path: Path) -> None:
    of, weights = trainer()
    of.step(0)
    key = digest(recipe())
    checkpoint.save(tmp_path, of, weights, 1, key)
    found = checkpoint.latest(tmp_path, key)
    assert found is not None
    name = next(iter(weights["student"]))
    other = {"student": {**weights["student"], name: torch.nn.Parameter(torch.zeros(3, 5))}}
    kept = {n: p.detach().clone() for n, p in other["student"].items()}
    with pytest.raises(checkpoint.CheckpointError, match=rf"student/{name} must be \[3, 5\], and the checkpoint has"):
        checkpoint.restore_weights(found, other)
    assert same(kept, {n: p.detach() for n, p in other["student"].items()})


@pytest.mark.row("R3")
@pytest.mark.parametrize("schema", [0, 99])
def test_another_schema_is_not_damage(schema: int, stopped: tuple[Path, int], tmp_path: Path) -> None:
    at = shutil.copytree(stopped[0] / "checkpoints", tmp_path / "checkpoints")
    last = checkpoint.published(at)[-1]
    if schema:
        said = json.loads((last / "MANIFEST.json").read_text())
        del said["sha256"]
        said |= {"schema": schema, "news": "something that we do not know"}
        from flowmap.training.store.manifest import _own

        (last / "MANIFEST.json").write_text(json.dumps({**said, "sha256": _own(said)}))
    else:
        (last / "MANIFEST.json").write_text(json.dumps({"state.safetensors": {}, "train_state.json": {}}))
    before = tree(at)
    whose = "a newer flowmap" if schema else "an older flowmap"
    with pytest.raises(checkpoint.CheckpointError, match=f"is of schema {schema}, this version reads 1; .* {whose}"):
        checkpoint.latest(at, digest(recipe()))
    assert tree(at) == before


@pytest.mark.row("R17")
def test_what_is_saved_is_what_was_there_when_the_save_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what training makes of it meanwhile: weights, averages, moments and counters."""
    goes_on, write = threading.Event(), shards.write
    monkeypatch.setattr(shards, "write", lambda *given: (goes_on.wait(), write(*given))[1])
    of, weights = trainer()
    of.step(0)
    expected, counters = live(of, weights), of.state()
    writing = checkpoint.begin(tmp_path, of, weights, 1, "digest")
    of.step(1)
    assert writing.busy and not same(live(of, weights), expected)
    goes_on.set()
    found = tensors_of(writing.finish())
    assert same({name: found[name] for name in expected}, expected)
    moments = {
        name: value for name, value in found.items() if name.endswith(tuple(weights["student"])) and "/exp" in name
    }
    assert moments and all(value.isfinite().all() for value in moments.values())
    assert {float(value) for name, value in found.items() if "/step/" in name} == {1.0}
    said = json.loads((tmp_path / "step_02_00000001" / "train_state.json").read_text())
    assert said["trainer"] == json.loads(json.dumps(counters))


@pytest.mark.row("R3")
def test_what_a_disk_makes_of_a_shard_is_found_before_an_older_one_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, weights = trainer()
    kept = [checkpoint.save(tmp_path, of, weights, iteration, "digest") for iteration in (1, 2)]
    settle = checkpoint.settle

    def worn(new: Path, final: Path) -> None:
        flip(next((new / "state").iterdir()))
        settle(new, final)

    monkeypatch.setattr(checkpoint, "settle", worn)
    with pytest.raises(checkpoint.SaveError, match=r"step_02_00000003, read again, is damaged: .* is not what"):
        checkpoint.save(tmp_path, of, weights, 3, "digest")
    assert checkpoint.published(tmp_path) == kept and len(list(tmp_path.glob("*.corrupt"))) == 1


def test_what_is_put_together_is_what_was_saved(tmp_path: Path) -> None:
    """The judge of these tests reads shards by itself."""
    of, weights = trainer()
    of.step(0)
    path = checkpoint.save(tmp_path, of, weights, 1, "digest")
    found = tensors_of(path)
    expected = live(of, weights)
    assert same({name: found[name] for name in expected}, expected)
    assert any(name.startswith("optim/critic/") for name in found)
