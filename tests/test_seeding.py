"""A generator from all bits of a hash of its key."""

from __future__ import annotations

import hashlib
import random
import struct
from itertools import combinations

import pytest
import torch

from flowmap import seeding
from flowmap._types import Rng
from flowmap.seeding import generator

CPU, LIKE = torch.device("cpu"), torch.zeros(1)


def test_a_cpu_generator_is_the_mersenne_twister_whose_whole_state_is_the_hash() -> None:
    """Python's own twister, set to the same 624 words, gives the same numbers: the state's layout is what we think."""
    for key in (b"", b"one", b"two"):
        words = struct.unpack("<624I", hashlib.shake_128(key).digest(4 * 624))
        oracle = random.Random()
        oracle.setstate((3, (*words, 624), None))
        expected = [(oracle.getrandbits(32) % 2**24) * 2**-24 for _ in range(2000)]
        assert torch.rand(2000, generator=generator(key, CPU)).tolist() == expected


def test_streams_that_agree_in_32_bits_of_a_hash_are_two() -> None:
    """Of the streams of a long stage, where 32 bits of 8 bytes of blake2b told them apart, these were one."""
    for pair in ((19593, 21688), (39373, 58380), (87043, 120523)):
        old = [struct.pack("<6q", 0, 0, iteration, 0, 0, 0) for iteration in pair]
        seeds = [int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1 for key in old]
        assert (seeds[0] - seeds[1]) % 2**32 == 0
        a, b = (Rng.seeded(0, 0, iteration, 0, 0).normal(64, LIKE) for iteration in pair)
        assert (a - b).abs().min() > 0


def test_states_differ_in_half_of_their_bits() -> None:
    states = [bytes(generator(bytes([k]), CPU).get_state().tolist())[seeding.WORDS] for k in range(6)]
    for a, b in combinations(states, 2):
        apart = sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))
        assert abs(apart / (32 * 624) - 0.5) < 0.02


def test_a_state_that_torch_keeps_otherwise_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "WORDS", slice(32, 32 + 8 * 624))
    seeding._unseeded.cache_clear()
    with pytest.raises(RuntimeError, match="keeps the state of a CPU generator in another way"):
        generator(b"", CPU)
    seeding._unseeded.cache_clear()


@pytest.mark.gpu
def test_a_cuda_generator_has_a_seed_and_a_place_of_its_own() -> None:
    cuda = torch.device("cuda")
    one, other = generator(b"one", cuda), generator(b"other", cuda)
    assert one.initial_seed() != other.initial_seed()
    assert one.get_offset() != other.get_offset() and one.get_offset() % 4 == 0
    first = torch.randn(1000, generator=one, device=cuda)
    assert torch.equal(first, torch.randn(1000, generator=generator(b"one", cuda), device=cuda))
    assert abs(float(first.mean())) < 0.2 and abs(float(first.std()) - 1) < 0.1
