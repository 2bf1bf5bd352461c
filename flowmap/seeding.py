"""torch's generators, from all bits of a hash: `manual_seed` keeps 32 bits of a seed on a CPU."""

from __future__ import annotations

import hashlib
import struct
from functools import cache

import torch
from torch import Tensor

WORDS = slice(24, 24 + 8 * 624)  # of the state that a CPU generator gives: the Mersenne Twister's, 4 bytes in every 8


def generator(key: bytes, device: torch.device) -> torch.Generator:
    """A generator whose numbers are a function of `key` and of the kind of device; another key gives others.

    On a CPU the whole state, 624 words, is drawn from a hash of 128 bits' strength. On CUDA Philox counts from a place
    that 60 bits choose in a stream that 64 choose. Elsewhere there are 64 bits.
    """
    if device.type == "cpu":
        state, drawn = bytearray(_unseeded()), hashlib.shake_128(key).digest(4 * 624)
        for byte in range(4):
            state[WORDS.start + byte : WORDS.stop : 8] = drawn[byte::4]
        own = torch.Generator()
        own.set_state(torch.frombuffer(state, dtype=torch.uint8))
        return own
    seed, place = struct.unpack("<QQ", hashlib.blake2b(key, digest_size=16).digest())
    own = torch.Generator(device).manual_seed(seed)
    if device.type == "cuda":
        own.set_offset(place >> 4 << 2)  # a multiple of 4, and far from where 64 bits of counting end
    return own


def digest(x: Tensor) -> bytes:
    """128 bits of a hash of x's numbers, as they are in memory."""
    numbers = x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return hashlib.blake2b(numbers, digest_size=16).digest()


@cache
def _unseeded() -> bytes:
    """A CPU generator's state that is to make its next number from `WORDS`; a RuntimeError where it is another."""
    state = bytes(torch.Generator().manual_seed(1).get_state().tolist())
    first, second, *_ = (word for word, _ in struct.iter_unpack("<II", state[WORDS]))
    if (first, second) != (1, 1812433254):  # the Mersenne Twister's own seeding, from 1
        raise RuntimeError(
            f"torch {torch.__version__} keeps the state of a CPU generator in another way than flowmap knows: "
            "install a version that flowmap was tested with"
        )
    return state
