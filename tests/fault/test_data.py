"""R12: bad data shards. R14: hostile shards and paths."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from attrs import evolve, field, frozen
from safetensors.torch import load, save

from flowmap import AdamW, Recipe, Stage, distill
from flowmap.data import Data, DataError, LatentFolder, LatentShards, Prefetch, indices
from flowmap.data.check import check
from flowmap.data.format import HEAD, Index, Plan
from flowmap.data.writer import Made, packed, write
from flowmap.methods import anyflow
from tests import toys
from tests.data.made import ENCODERS, Toy, written
from tests.toys import Toy as Network

ROOT = Path(__file__).parents[2]
SHARD = "shard-00001.safetensors"
COUNT, ONE = 20, 4  # five shards of four; the second is damaged


@frozen
class Backbone(Network):
    """A spec that knows its encoders."""

    vae: str = ENCODERS["vae"]

    def encoders(self) -> dict[str, str]:
        return {**ENCODERS, "vae": self.vae}


# ---------------------------------------------------------------- the ten kinds of corruption
def truncated(root: Path) -> None:
    (root / SHARD).write_bytes((root / SHARD).read_bytes()[:-100])


def flipped(root: Path) -> None:
    content = bytearray((root / SHARD).read_bytes())
    content[-70] ^= 4  # in the latents: they come last
    (root / SHARD).write_bytes(content)


def missing(root: Path) -> None:
    (root / SHARD).unlink()


def empty(root: Path) -> None:
    (root / SHARD).write_bytes(b"")


def another(change: Callable[[Made], Made]) -> Callable[[Path], None]:
    """A shard that is sound in itself, hashes and all, of samples that are not."""

    def damage(root: Path) -> None:
        content, head = packed(change(Toy().samples(ONE, 2 * ONE)))
        put(root, content, head)

    return damage


def put(root: Path, content: bytes, head: str, **more: Any) -> None:
    """As the second shard, in the index too."""
    (root / SHARD).write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(head.encode()).hexdigest(), **more}
    edit(root, lambda index: index["shards"][1].update(entry))


def edit(root: Path, change: Callable[[Any], object]) -> None:
    index = json.loads((root / "index.json").read_text())
    change(index)
    (root / "index.json").write_text(json.dumps(index))


def x_of(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return another(lambda made: Made(change(made.x), made.prompts, made.cond))


def not_finite(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[:, 0, 0, 0, 0] = torch.nan
    return x


def more_than_there_is(root: Path) -> None:
    """The head promises four samples, the tensor has two."""
    content, head = packed(Toy().samples(ONE, 2 * ONE))
    tensors = load(content)
    tensors["x"] = tensors["x"][:2].contiguous()
    put(root, save(tensors, {HEAD: head}), head)


def of_other_data(root: Path) -> None:
    """Sound in itself, and of the same size, but not what the index vouches for."""
    made = Toy().samples(ONE, 2 * ONE)
    content, _ = packed(evolve(made, x=made.x + 1))
    assert len(content) == (root / SHARD).stat().st_size
    (root / SHARD).write_bytes(content)


OF_A_SHARD: dict[str, tuple[Callable[[Path], None], str, int]] = {
    # what is damaged, what is said, how many samples are lost
    "truncated": (truncated, rf"{SHARD} has \d+ bytes: must have \d+", 4),
    "flipped bit": (flipped, rf"{SHARD}, sample \d is damaged: its hash is another", 1),
    "wrong type": (x_of(lambda x: x.double()), rf"{SHARD}, sample \d is torch.float64 .*: must be float32", 4),
    "wrong shape": (
        x_of(lambda x: x[..., :1]),
        rf"{SHARD}, sample \d is .*\(3, 2, 2, 1\): must be .*\(3, 2, 2, 2\)",
        4,
    ),
    "not finite": (x_of(not_finite), rf"{SHARD}, sample \d: x has values that are not finite", 4),
    "missing file": (missing, rf"{SHARD} is missing", 4),
    "empty file": (empty, rf"{SHARD} has 0 bytes", 4),
    "of other data": (of_other_data, rf"{SHARD} is damaged, or of other data: its head is not what the index says", 4),
    "fewer than promised": (more_than_there_is, rf"{SHARD} has latents .*: sample \d is not among them", 2),
}


def twice(root: Path) -> None:
    edit(root, lambda index: index["shards"][1].update(index["shards"][0]))


def too_many(root: Path) -> None:
    edit(root, lambda index: index["shards"][1].update(count=5))


OF_ALL = {
    # what no other sample can stand in for
    "duplicate name": (twice, "shard-00000.safetensors is listed twice"),
    "index says more": (too_many, "count = 20, but the shards have 21 samples"),
    "other vae": (lambda root: None, "latents of another VAE: aaaaaaaaaaaa, and the backbone's is cccccccccccc"),
}


def opened(
    root: Path, bad: Literal["raise", "skip"], workers: int, vae: str = ENCODERS["vae"], most: int = 100
) -> Data:
    folder = LatentFolder(root, bad=bad, workers=workers, most_skipped=most)
    return folder.load(Backbone(vae=vae), None, device=torch.device("cpu"))


def epoch(data: Data, ranks: int = 1) -> list[torch.Tensor]:
    """All batches of an epoch and a half, each rank's part read on its own."""
    coming = [indices(len(data), 6, k, 0)[rank::ranks] for k in range(5) for rank in range(ranks)]
    if isinstance(data, Prefetch):
        data.expect(coming)
    try:
        return [data.batch(index).x for index in coming]
    finally:
        if isinstance(data, Prefetch):
            data.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", OF_A_SHARD)
def test_r12_a_bad_shard_is_named(tmp_path: Path, kind: str, workers: int) -> None:
    written(tmp_path, COUNT, ONE)
    damage, said, _ = OF_A_SHARD[kind]
    damage(tmp_path)
    with pytest.raises(DataError, match=said):
        epoch(opened(tmp_path, "raise", workers))
    found = [finding.text for finding in check(tmp_path) if finding.kind == "refused"]
    assert found and "shard-00001" in found[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", OF_A_SHARD)
def test_r12_a_bad_sample_is_skipped_and_counted(tmp_path: Path, kind: str, workers: int, capsys: Any) -> None:
    """Every batch is full, whatever the ranks; what stands in is good, and the same on one rank and on two."""
    sound = list(written(tmp_path, COUNT, ONE).batch(range(COUNT)).x)
    damage, _, lost = OF_A_SHARD[kind]
    damage(tmp_path)
    data = opened(tmp_path, "skip", workers)
    whole = epoch(data)
    assert [len(x) for x in whole] == [6] * 5
    assert all(any(torch.equal(x, one) for one in sound) for batch in whole for x in batch)
    shards = data.data if isinstance(data, Prefetch) else data
    assert isinstance(shards, LatentShards) and len(shards.skipped) == lost
    assert {i // ONE for i in shards.skipped} == {1} and all(SHARD in why for why in shards.skipped.values())
    told = capsys.readouterr().err.splitlines()
    assert len(told) == lost and all(line.startswith("flowmap: sample ") and SHARD in line for line in told)
    parts = epoch(opened(tmp_path, "skip", workers), ranks=2)
    for k, batch in enumerate(whole):
        assert torch.equal(torch.cat(parts[2 * k : 2 * k + 2]), torch.cat([batch[0::2], batch[1::2]]))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bad", ["raise", "skip"])
@pytest.mark.parametrize("kind", OF_ALL)
def test_r12_what_nothing_can_stand_in_for_is_refused_at_once(
    tmp_path: Path, kind: str, bad: Literal["raise", "skip"], workers: int
) -> None:
    written(tmp_path, COUNT, ONE)
    damage, said = OF_ALL[kind]
    damage(tmp_path)
    with pytest.raises(DataError, match=said):
        opened(tmp_path, bad, workers, vae="c" * 64)


def test_r12_more_than_may_be_skipped_is_an_error_that_lists_them(tmp_path: Path) -> None:
    written(tmp_path, COUNT, ONE)
    missing(tmp_path)
    with pytest.raises(
        DataError, match=r"3 samples cannot be read, and at most 2 may be skipped: \d, \d, \d; the last"
    ):
        epoch(opened(tmp_path, "skip", 0, most=2))
    for k in range(5):
        (tmp_path / f"shard-0000{k}.safetensors").unlink(missing_ok=True)
    with pytest.raises(DataError, match="none of the 20 samples can be read"):
        epoch(opened(tmp_path, "skip", 0))


def test_r12_sound_data_of_these_encoders_is_taken(tmp_path: Path) -> None:
    written(tmp_path, COUNT, ONE)
    assert len(epoch(opened(tmp_path, "raise", 2))) == 5
    assert LatentFolder(tmp_path).fingerprint() == LatentShards.open(tmp_path).fingerprint()


# ---------------------------------------------------------------- hostile
NAMES = ["../secret", "/etc/passwd", "shard-00001.safetensors\0", "a/../../x", "..", "shard-1.safetensors", "", 7, None]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_r14_a_name_in_the_index_leads_nowhere(tmp_path: Path, name: Any) -> None:
    written(tmp_path / "data", COUNT, ONE)
    (tmp_path / "secret").write_bytes((tmp_path / "data" / SHARD).read_bytes())
    edit(tmp_path / "data", lambda index: index["shards"][1].update(file=name))
    with pytest.raises(DataError, match=r"is damaged: .*(no name of a shard|no file name)"):
        LatentShards.open(tmp_path / "data")


@pytest.mark.parametrize("name", [SHARD, "null.safetensors"])
def test_r14_a_link_does_not_lead_out(tmp_path: Path, name: str) -> None:
    written(tmp_path / "data", COUNT, ONE)
    (tmp_path / "data" / name).rename(tmp_path / "outside")
    (tmp_path / "data" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="is a link that leads out of"):
        LatentShards.open(tmp_path / "data")
    (tmp_path / "data" / name).unlink()
    (tmp_path / "data" / name).symlink_to(tmp_path / "data" / name)  # to itself
    with pytest.raises(DataError, match="is missing"):
        LatentShards.open(tmp_path / "data")
    (tmp_path / "data" / name).unlink()
    os.mkfifo(tmp_path / "data" / name)  # to open it would wait for ever
    with pytest.raises(DataError, match="is no regular file"):
        LatentShards.open(tmp_path / "data")


def test_r14_the_whole_directory_may_be_a_link(tmp_path: Path) -> None:
    written(tmp_path / "data", COUNT, ONE)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert len(LatentShards.open(tmp_path / "link")) == COUNT


BAD_INDEX: dict[str, Callable[[Any], object]] = {
    "count": lambda index: index["shards"][1].update(count=-4),
    "huge": lambda index: index["latent"].update(shape=[1 << 40, 1 << 40]),
    "dtype": lambda index: index["latent"].update(dtype="object"),
    "bool": lambda index: index["shards"][1].update(count=True),
    "hash": lambda index: index["shards"][1].update(sha256="xyz"),
    "list": lambda index: index.update(shards={"file": "x"}),
    "null": lambda index: index["null"].update(file=SHARD),
    "none": lambda index: index.pop("cond"),
    "plan": lambda index: index.update(count=1 << 47, shard=1),
    "text": lambda index: index.update(cond=["text"]),
}


@pytest.mark.parametrize("kind", BAD_INDEX)
def test_r14_a_bad_index_is_a_sentence(tmp_path: Path, kind: str) -> None:
    written(tmp_path, COUNT, ONE)
    edit(tmp_path, BAD_INDEX[kind])
    with pytest.raises(DataError, match=r"index\.json is damaged: "):
        LatentShards.open(tmp_path)


def test_r14_no_index_is_too_deep_or_too_long(tmp_path: Path, monkeypatch: Any) -> None:
    written(tmp_path, COUNT, ONE)
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"index\.json is damaged: .*recursion"):
        Index.read(tmp_path)
    monkeypatch.setattr("flowmap.data.format.MOST_BYTES", 1000)
    with pytest.raises(DataError, match="has more than 1000 bytes"):
        Index.read(tmp_path)


HEADS = {
    "rows": '{"prompts": ["a"], "samples": [[7, "x"], [7, "x"], [7, "x"], [7, "x"]], "ends": {}}',
    "strings": '{"prompts": ["a"], "samples": [["0", "x"], ["0", "x"], ["0", "x"], ["0", "x"]], "ends": {}}',
    "none": "null",
    "empty": '{"prompts": [], "samples": [], "ends": {}}',
    "ends": '{"prompts": ["a"], "samples": [[0, "x"], [0, "x"], [0, "x"], [0, "x"]], "ends": {"text": "abc"}}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("kind", HEADS)
def test_r14_a_hostile_head_is_a_sentence(tmp_path: Path, kind: str) -> None:
    written(tmp_path, COUNT, ONE)
    content, _ = packed(Toy().samples(ONE, 2 * ONE))
    put(tmp_path, save(load(content), {HEAD: HEADS[kind]}), HEADS[kind])
    with pytest.raises(DataError, match="shard-00001"):
        LatentShards.open(tmp_path).batch([ONE])
    assert [finding for finding in check(tmp_path) if finding.kind == "refused"]


class Payload:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("name", [SHARD, "null.safetensors", "index.json"])
def test_r14_a_pickle_is_refused_and_not_executed(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, COUNT, ONE)
    torch.save(Payload(), tmp_path / name)
    size = (tmp_path / name).stat().st_size
    if name == SHARD:
        edit(tmp_path, lambda index: index["shards"][1].update(bytes=size))
    elif name != "index.json":
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        edit(tmp_path, lambda index: index["null"].update(bytes=size, sha256=digest))
    with pytest.raises(DataError):
        LatentShards.open(tmp_path).batch([ONE])
    assert not (tmp_path / "executed").exists()


def unsafe(source: str) -> list[str]:
    """Calls and imports that read pickles or unpack archives."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [m for m in modules if m.split(".")[0] in ("pickle", "dill", "joblib", "shelve", "marshal")]
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            found += [name] if name in ("torch.load", "np.load", "numpy.load", "torch.save") else []
            found += [name] if node.attr in ("extractall", "extract", "unpack_archive") else []
    return found


def test_r14_no_pickle_and_no_unpacking_in_the_data_layer() -> None:
    sources = [*ROOT.glob("flowmap/data/*.py"), *ROOT.glob("flowmap/cli/*.py"), *ROOT.glob("plugins/*/*.py")]
    assert len(sources) > 30
    assert {str(path): calls for path in sources if (calls := unsafe(path.read_text()))} == {}
    assert unsafe("import pickle, torch\ntorch.load(1)\ntar.extractall()") == ["pickle", "torch.load", "tar.extractall"]


def test_the_toy_is_what_the_index_says(tmp_path: Path) -> None:
    """A shard that is packed again is the one that was written: else every test above would find it damaged."""
    data = written(tmp_path, COUNT, ONE)
    content, head = packed(Toy().samples(ONE, 2 * ONE))
    assert content == (tmp_path / SHARD).read_bytes()
    assert evolve(data.index.shards[1], sha256=hashlib.sha256(head.encode()).hexdigest()) == data.index.shards[1]


# ---------------------------------------------------------------- R16: reading ahead changes nothing
class Samples(Toy):
    """Of the toy network's shape."""

    def null(self) -> dict[str, torch.Tensor]:
        return dict(toys.data(1).null)

    def samples(self, first: int, last: int) -> Made:
        whole = toys.data(COUNT)
        prompts = [f"prompt {k}" for k in range(first, last)]
        return Made(whole.x[first:last], prompts, {"text": whole.cond["text"][first:last]})


@frozen
class Counted(LatentFolder):
    """Keeps what it loaded."""

    loaded: list[Any] = field(factory=list, repr=False, eq=False)

    def load(self, *arguments: Any, **named: Any) -> Any:
        self.loaded.append(LatentFolder.load(self, *arguments, **named))
        return self.loaded[-1]


@pytest.mark.parametrize("bad", ["raise", "skip"])
def test_r16_the_same_weights_with_and_without_workers(tmp_path: Path, bad: Literal["raise", "skip"]) -> None:
    """Two updates a step, micro-batches, more than an epoch; with a damaged shard, too."""
    assert write(tmp_path, Plan(COUNT, ONE, {}, ENCODERS), Samples) is not None
    if bad == "skip":
        missing(tmp_path)
    stage = Stage(anyflow.on_policy(steps=(2,)), steps=5, batch=6, micro=2, ema=None, optimizer=AdamW(lr=1e-2))
    found, sources = [], []
    for workers in (0, 2):
        sources.append(Counted(tmp_path, bad=bad, workers=workers))
        student = distill(Recipe(Network(), (stage,), data=sources[-1]), device="cpu")
        found.append({name: p.detach().clone() for name, p in student.trained().items()})
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    (plain,), (ahead,) = (source.loaded for source in sources)
    assert isinstance(plain, LatentShards) and isinstance(ahead, Prefetch) and isinstance(ahead.data, LatentShards)
    assert set(plain.skipped) <= set(ahead.data.skipped) and (len(plain.skipped) == 4) == (bad == "skip")
