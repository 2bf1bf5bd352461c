"""What the networks of the Wan family share: blocks, adapters, the codec, students on disk. A library, no plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowmap import lazily

if TYPE_CHECKING:
    from flowmap_lora.roles import Lora

    from .spec import WanSpec

__all__ = ["Lora", "WanSpec"]
__getattr__ = lazily.public(__name__, {"flowmap_lora.roles": ["Lora"], f"{__name__}.spec": ["WanSpec"]})
