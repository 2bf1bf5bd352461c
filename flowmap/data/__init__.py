"""Where batches come from. A recipe names a `Data`, or a `Source` that makes one for its backbone."""

from __future__ import annotations

from functools import lru_cache

from .._types import Rng
from .fingerprint import Fingerprinted, fingerprint
from .folder import LatentFolder
from .format import DataError
from .prefetch import Prefetch, ReadsAhead
from .shards import LatentShards
from .sized import Sized
from .source import Data, Source
from .tensors import TensorData
from .video_folder import BadClipsError, VideoFolder

__all__ = [
    "BadClipsError",
    "Data",
    "DataError",
    "Fingerprinted",
    "LatentFolder",
    "LatentShards",
    "Prefetch",
    "ReadsAhead",
    "Sized",
    "Source",
    "TensorData",
    "VideoFolder",
    "fingerprint",
    "indices",
]


def indices(length: int, batch: int, iteration: int, *key: int) -> list[int]:
    """The samples of global batch `iteration`: epochs of permutations keyed by `key`, a pure function.

    So a resumed run needs no cursor, and another number of ranks sees the same samples.
    """
    first = iteration * batch
    return [_permutation(length, k // length, key)[k % length] for k in range(first, first + batch)]


@lru_cache(maxsize=4)
def _permutation(length: int, epoch: int, key: tuple[int, ...]) -> list[int]:
    return Rng((*key, epoch)).permutation(length).tolist()
