"""LoRA adapters of several roles on one frozen base, and weights in float32 where a network is trained whole.

For the networks of any plugin; no plugin itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowmap import lazily

if TYPE_CHECKING:
    from .roles import Lora

__all__ = ["Lora"]
__getattr__ = lazily.public(__name__, {f"{__name__}.roles": ["Lora"]})
