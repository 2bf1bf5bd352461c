"""What was written is what is read, in any order, in parts and as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from safetensors import safe_open

from flowmap import TensorData
from flowmap.data import DataError, LatentShards, fingerprint, indices
from flowmap.data.format import Index
from flowmap.data.writer import Made, write

from .made import ENCODERS, LENGTH, SHAPE, WIDTH, Toy, latent, plan, prompt, text, written


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    data = written(tmp_path)
    assert len(data) == 10
    index = [9, 0, 5, 0]
    batch = data.batch(index)
    torch.testing.assert_close(batch.x, torch.stack([latent(k) for k in index]), rtol=0, atol=0)
    torch.testing.assert_close(batch.cond["text"], torch.stack([text(prompt(k)) for k in index]), rtol=0, atol=0)
    assert batch.cond["label"].tolist() == [8, 0, 4, 0]  # the first sample of the shard, plus the place of the prompt
    torch.testing.assert_close(batch.null["text"], text("")[None], rtol=0, atol=0)
    assert batch.null["label"].tolist() == [7] and batch.null["label"].dtype == torch.int64
    assert [*data.prompts()] == [prompt(k) for k in range(10)]


def test_only_what_is_not_padding_is_stored(tmp_path: Path) -> None:
    data = written(tmp_path)
    kept = 0
    for shard in data.index.shards:
        with safe_open(tmp_path / shard.file, framework="pt") as file:
            kept += file.get_slice("cond/text").get_shape()[0]
    assert kept == sum((k + 1) % LENGTH for k in range(5))
    assert data.index.cond["text"].shape == (LENGTH, WIDTH) and data.index.latent.shape == SHAPE


def test_texts_may_be_nothing_but_padding_and_latents_of_half_precision(tmp_path: Path) -> None:
    x = torch.arange(4.0).reshape(2, 2).to(torch.bfloat16)

    class Half(Toy):
        def samples(self, first: int, last: int) -> Made:
            return Made(x, ["a", "b"], {"text": torch.zeros(2, 3, 1, dtype=torch.bfloat16)})

        def null(self) -> dict[str, torch.Tensor]:
            return {"text": torch.zeros(1, 3, 1)}

    data = write(tmp_path, plan(2, 2), Half)
    assert data is not None
    batch = data.batch([1])
    assert batch.x.dtype == torch.float32  # of texts there is no copy in another type
    assert batch.cond["text"].dtype == batch.null["text"].dtype == torch.bfloat16
    assert batch.x.tolist() == [[2.0, 3.0]] and batch.cond["text"].shape == (1, 3, 1)


def test_a_sample_is_hashed_once_a_run_and_again_when_its_file_changes(tmp_path: Path, monkeypatch: Any) -> None:
    from flowmap.data import shard

    data, real = written(tmp_path), shard.sample_hash
    hashed: list[str] = []
    monkeypatch.setattr(shard, "sample_hash", lambda x, prompt, texts: hashed.append(prompt) or real(x, prompt, texts))
    for _ in range(3):
        data.batch([0, 1])
    assert hashed == [prompt(0), prompt(1)]
    file = tmp_path / data.index.shards[0].file
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(DataError, match="is damaged: its hash is another"):
        data.batch(range(data.index.shards[0].count))
    assert len(hashed) > 2
    file.write_bytes(damaged[:-1])
    with pytest.raises(DataError, match="so it is damaged"):  # not a look into memory that is no longer there
        data.batch([0])


def test_a_batch_holds_nothing_of_the_file(tmp_path: Path) -> None:
    """Its tensors are copies: what is done to them is done to no later batch, nor to the file."""
    data = written(tmp_path)
    first = data.batch([0])
    kept = first.x.clone(), first.cond["text"].clone()
    first.x.zero_()
    first.cond["text"].fill_(7)
    again = data.batch([0])
    assert torch.equal(again.x, kept[0]) and torch.equal(again.cond["text"], kept[1])


def test_a_batch_is_a_function_of_its_numbers_so_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    data = written(tmp_path)
    whole = [data.batch(indices(len(data), 4, k, 3)).x for k in range(6)]  # two epochs and a half
    again = LatentShards.open(tmp_path)
    for k in (4, 2, 5):
        torch.testing.assert_close(again.batch(indices(len(again), 4, k, 3)).x, whole[k], rtol=0, atol=0)
    assert torch.equal(torch.cat([again.batch([i]).x for i in indices(10, 4, 4, 3)]), whole[4])  # ranks take parts


def test_fingerprints_tell_data_apart(tmp_path: Path) -> None:
    one = written(tmp_path / "a")
    assert one.fingerprint() == written(tmp_path / "b").fingerprint() == fingerprint(one)
    assert one.fingerprint() != written(tmp_path / "c", count=9).fingerprint()
    assert fingerprint(object()) is None
    x = torch.zeros(2, 1)
    assert fingerprint(TensorData(x)) == fingerprint(TensorData(x.clone())) != fingerprint(TensorData(x + 1))


def test_the_index_comes_back_as_it_was(tmp_path: Path) -> None:
    data = written(tmp_path)
    assert Index.read(tmp_path) == data.index and data.index.plan == plan()
    assert data.index.plan.encoders == ENCODERS


@pytest.mark.parametrize("number", [-1, 10])
def test_a_sample_that_is_not_there(tmp_path: Path, number: int) -> None:
    with pytest.raises(IndexError, match=f"sample {number}: there are 10"):
        written(tmp_path).sample(number)


def test_data_of_an_older_version_says_so(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"shards": []}')
    with pytest.raises(DataError, match="has the format 1: must be 2; encode the data again"):
        LatentShards.open(tmp_path)
    with pytest.raises(DataError, match="holds no encoded data"):
        LatentShards.open(tmp_path / "nowhere")


def test_the_head_is_read_again_when_the_file_changes(tmp_path: Path) -> None:
    data = written(tmp_path / "a")
    data.batch([0])
    other = written(tmp_path / "b", count=9)
    for file in other.index.shards:
        (tmp_path / "a" / file.file).write_bytes((tmp_path / "b" / file.file).read_bytes())
    assert evolve(data.index.shards[0]) == other.index.shards[0]
    with pytest.raises(DataError, match="damaged"):
        data.batch([9])
