"""Moving handwritten digits: a small real data set, its measurements, and the frozen parts of a tiny Wan pipeline.

``flowmap_digits.videos`` renders clips and their prompts, ``flowmap_digits.measure`` says how well videos follow
prompts and how real they look, ``flowmap_digits.classifier`` is the network behind the latter,
``flowmap_digits.rewards`` has what they may be rewarded for. Importing this package
loads none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flowmap.hookspecs import hookimpl
from flowmap.lazily import Lazily

if TYPE_CHECKING:
    from flowmap.rewards import Reward

ASSETS = Path(__file__).parent / "assets"
"""Files made by ``recipes/tiny_wan_assets.py``."""
TINY_WAN = ASSETS / "tiny_wan"
"""A diffusers pipeline directory: tokenizer, text encoder, VAE and scheduler for 9×32×32 clips."""
CLASSIFIER = ASSETS / "classifier.safetensors"
"""The classifier's weights with the feature statistics of real clips."""


@hookimpl
def flowmap_rewards() -> Mapping[str, Reward]:
    names = ("ink", "position", "legible")
    return Lazily({name: f"{__name__}.rewards:{name.upper()}" for name in names})
