"""Several sets of peft adapters on one base, chosen by the call and not by a global switch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from flowmap import validators

if TYPE_CHECKING:
    import torch
    from torch import nn

    from flowmap.model import Put


@frozen
class Lora:
    """ΔW = (alpha / rank) B A on self-attention and feed-forward, for the student on both time embedders too."""

    rank: int = field(default=256, validator=validators.ge(1))
    alpha: float = field(default=256.0, validator=validators.gt(0.0))
    seed: int = 0


def add_adapter(net: nn.Module, name: str, lora: Lora, targets: str | list[str]) -> None:
    """Give `net` a set of adapters, A random from `lora.seed`, B zero, float32; the rest trains or not as before.

    targets: the layers' names, or a regular expression of them, as peft takes it.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    trained = {id(p) for p in net.parameters() if p.requires_grad}
    where = torch.device("meta" if next(net.parameters()).is_meta else "cpu")  # peft follows the base, but not there
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), where:
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several sets are what we want
        torch.manual_seed(lora.seed)
        inject_adapter_in_model(config, net, adapter_name=name)
    for key, p in net.named_parameters():
        p.requires_grad_(id(p) in trained or f".{name}." in key)  # peft leaves only its newest adapter trainable
        if f".{name}." in key:
            p.data = p.data.float()


def fill_adapter(net: nn.Module, name: str, lora: Lora, put: Put) -> None:
    """What `add_adapter` gives to the set, a layer at a time: the numbers that peft draws for it, in their order."""
    import torch
    from peft.tuners.lora import LoraLayer
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lora.seed)
        for layer in net.modules():
            if not isinstance(layer, LoraLayer) or name not in layer.lora_A:
                continue
            base = layer.get_base_layer()
            first = nn.Linear(base.in_features, lora.rank, bias=False)
            last = nn.Linear(lora.rank, base.out_features, bias=False)
            nn.init.kaiming_uniform_(first.weight, a=math.sqrt(5))  # over what the layer was made with
            nn.init.zeros_(last.weight)
            put(layer.lora_A[name].weight, first.weight.detach().to(base.weight.dtype).__getitem__)
            put(layer.lora_B[name].weight, last.weight.detach().__getitem__)


def adapter_parameters(net: nn.Module, name: str) -> Mapping[str, nn.Parameter]:
    """The set's tensors, named without the set: `blocks.0.attn1.to_q.lora_A.weight`."""
    return {key.replace(f".{name}.", "."): p for key, p in net.named_parameters() if f".{name}." in key}


def activate(module: nn.Module, name: str | None) -> None:
    """Use the set `name` below `module`, or none: peft's own `set_adapter` also flips `requires_grad`, mid-graph."""
    from peft.tuners.lora import LoraLayer

    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            layer._active_adapter = [] if name is None else [name]


def parts(net: nn.Module, name: str | None) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """(name, W, ΔW) of every tensor of the base, under its own names, one by one; ΔW of the set `name`, float32."""
    from peft.tuners.lora import LoraLayer

    layers = {f"{path}.weight": layer for path, layer in net.named_modules() if isinstance(layer, LoraLayer)}
    for key, value in net.state_dict().items():
        if ".lora_" not in key:
            own = key.replace(".base_layer.", ".")
            layer: Any = layers.get(own)
            there = layer is not None and name in layer.lora_A
            yield own, value.detach(), layer.get_delta_weight(name).detach().float() if there else None
