"""What the networks of the Wan family share: blocks, adapters, the codec, students on disk. A library, no plugin."""

from __future__ import annotations

from flowmap_lora.roles import Lora

from .spec import WanSpec

__all__ = ["Lora", "WanSpec"]
