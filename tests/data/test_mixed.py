"""Several sets of data as one: shares, sizes, epochs, and the same whoever asks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file
from torch import Tensor, nn

from flowmap import AdamW, LatentFolder, Mixed, ModuleSpec, Recipe, Stage, TensorData, distill
from flowmap.data import DataError, Prefetch, draw, fingerprint
from flowmap.data.mixed import MixedData, turn, whole
from flowmap.methods.flow_matching import flow_matching
from flowmap.training.micro import micro_batches

from .made import written

CPU = torch.device("cpu")


def marked(first: int, n: int, *shape: int) -> TensorData:
    """Latents that are their numbers."""
    x = torch.arange(first, first + n, dtype=torch.float32).reshape(n, *(1,) * len(shape)).expand(n, *shape)
    return TensorData(x, {"label": torch.arange(first, first + n)}, {"label": torch.zeros(1, dtype=torch.int64)})


SMALL, ALSO, LARGE = marked(0, 6, 1, 1, 4, 4), marked(100, 10, 1, 1, 4, 4), marked(200, 8, 1, 1, 4, 6)


def mixed(*parts: TensorData, weights: tuple[float, ...] | None = None) -> MixedData:
    return MixedData.of(parts, weights)


def test_weights_become_whole_numbers() -> None:
    assert whole((0.7, 0.3)) == (7, 3) and whole((4, 2, 6)) == (2, 1, 3) and whole((1.0, 1 / 3)) == (3, 1)


@pytest.mark.parametrize("shares", [(1,), (3, 1), (7, 3, 2), (1, 100)])
def test_everyone_has_a_share_of_any_stretch(shares: tuple[int, ...]) -> None:
    total = sum(shares)
    turns = [turn(shares, place, (5, 0)) for place in range(3 * total)]
    for who, share in enumerate(shares):
        counts = [before for one, before in turns if one == who]
        assert counts == [*range(3 * share)]  # none left out, none twice
        so_far = 0
        for place, (one, _) in enumerate(turns, 1):
            so_far += one == who
            assert abs(so_far - place * share / total) <= len(shares)
    assert shares == (1,) or turns != [turn(shares, place, (6, 0)) for place in range(3 * total)]


def test_without_weights_every_sample_comes_once_an_epoch() -> None:
    data = mixed(SMALL, ALSO)
    for epoch in range(3):
        seen = [i for iteration in range(4 * epoch, 4 * epoch + 4) for i in data.draw(4, iteration, 0, 1)]
        assert sorted(seen) == [*range(16)]


def test_weights_are_shares_of_the_samples() -> None:
    data = mixed(SMALL, ALSO, weights=(3, 1))
    seen = Counter(i < 6 for iteration in range(10) for i in data.draw(4, iteration, 0))
    assert seen == {True: 30, False: 10}
    assert {*Counter(i for k in range(8) for i in data.draw(4, k, 0) if i < 6).values()} == {4}  # and its epochs


def test_of_several_sizes_every_sample_comes_once_an_epoch_of_its_own() -> None:
    data = mixed(SMALL, LARGE, ALSO)
    seen = Counter(i for iteration in range(3 * 24) for i in data.draw(1, iteration, 0, 1))
    assert seen == dict.fromkeys(range(24), 3)


def test_a_batch_has_one_size_and_sizes_have_their_shares() -> None:
    data = mixed(SMALL, LARGE, ALSO, weights=(1, 1, 2))
    shapes = Counter()
    for iteration in range(40):
        index = data.draw(4, iteration, 3)
        batch = data.batch(index)
        starts = {0: (0, 0), 1: (200, 6), 2: (100, 14)}
        for i, label, x in zip(index, batch.cond["label"].tolist(), batch.x, strict=True):
            part = 0 if i < 6 else 1 if i < 14 else 2
            first, start = starts[part]
            assert label == first + i - start and float(x.flatten()[0]) == label  # in the order that was asked for
        shapes[tuple(batch.x.shape)] += 1
    assert shapes == {(4, 1, 1, 4, 4): 30, (4, 1, 1, 4, 6): 10}
    with pytest.raises(DataError, match="a batch has samples of one size"):
        data.batch([0, 6])


def test_ranks_see_the_batch_of_one() -> None:
    """Each its part of it, in one size, also under accumulation and read ahead."""
    data = Prefetch(mixed(SMALL, LARGE, ALSO))
    stage = Stage(flow_matching(), steps=20, batch=4, micro=1)
    for iteration in range(20):
        index = draw(data, 4, iteration, 0, 0)
        for ranks in (1, 2, 4):
            seen: list[int] = []
            for rank in range(ranks):
                for positions, _ in micro_batches(stage, iteration, (0, 0, iteration), rank, ranks)[0]:
                    part = [index[p] for p in positions]
                    data.batch(part)
                    seen += part
            assert sorted(seen) == sorted(index)
    data.close()


class Any(nn.Module):
    """Of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []
        self.mix = nn.Linear(3, 1)

    def forward(self, z: Tensor, t: Tensor, r: Tensor, label: Tensor) -> Tensor:
        self.seen.append(tuple(z.shape))
        given = [v.reshape(-1, 1, 1, 1, 1, 1).expand(*z.shape, 1) for v in (t, label.float() / 300)]
        return self.mix(torch.cat([z[..., None], *given], -1))[..., 0]


def test_training_takes_sizes_in_turn_and_parts_of_a_batch_change_nothing(tmp_path: Path) -> None:
    data = Mixed([evolve(part, x=part.x / 300) for part in (SMALL, LARGE)], workers=1)
    spec = ModuleSpec(Any(), None, z=SMALL.x[:2], cond={"label": SMALL.cond["label"][:2]})
    trained = []
    for micro in (None, 1):
        stage = Stage(flow_matching(role="student"), steps=9, batch=2, micro=micro, optimizer=AdamW(1e-2))
        out = tmp_path / f"run_{micro}"
        distill(Recipe(spec, (stage,), data=data, seed=1), out=out, device="cpu")
        trained.append(load_file(out / "student" / "model.safetensors"))
    before = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"].state_dict()
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, before[name])


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Mixed\.weights = \(1\.0,\): must be 2 numbers above 0"):
        Mixed((SMALL, ALSO), (1,))
    other = TensorData(ALSO.x, ALSO.cond, {"label": torch.ones(1, dtype=torch.int64)})
    with pytest.raises(DataError, match="part 1 has another null condition"):
        mixed(SMALL, other)
    with pytest.raises(DataError, match=r"part 1 has the conditions \[\], and part 0 \['label'\]"):
        mixed(SMALL, TensorData(ALSO.x))


def test_folders_are_parts_and_count_in_the_fingerprint(tmp_path: Path) -> None:
    for name in "ab":
        written(tmp_path / name)
    source = Mixed((LatentFolder(tmp_path / "a"), LatentFolder(tmp_path / "b")), (2, 1))
    data = source.load(ModuleSpec(Any(), None), None, device=CPU)
    assert isinstance(data, Prefetch) and len(data) == 20 and len(data.batch([0, 19, 3]).x) == 3
    data.close()
    assert fingerprint(source) not in (None, fingerprint(evolve(source, weights=(1, 1))))
    assert fingerprint(source) == fingerprint(evolve(source, workers=0))
