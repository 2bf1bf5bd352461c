"""LoRA adapters of several roles on one frozen base, and weights in float32 where a network is trained whole.

For the networks of any plugin; no plugin itself.
"""

from .roles import Lora

__all__ = ["Lora"]
