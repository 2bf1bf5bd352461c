"""Where batches come from. A recipe names a `Data`, or a `Source` that makes one for its backbone."""

from __future__ import annotations

from .draw import Draws, draw, indices
from .fingerprint import Fingerprinted, fingerprint
from .folder import LatentFolder
from .format import DataError
from .lacking import lacking
from .mixed import Mixed
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
    "Draws",
    "Fingerprinted",
    "LatentFolder",
    "LatentShards",
    "Mixed",
    "Prefetch",
    "ReadsAhead",
    "Sized",
    "Source",
    "TensorData",
    "VideoFolder",
    "draw",
    "fingerprint",
    "indices",
    "lacking",
]
