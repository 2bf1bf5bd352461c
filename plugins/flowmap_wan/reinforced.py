"""AnyFlow students that were trained on by reinforcement learning: a LoRA and the second embedder, on the student."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from flowmap_diffusers.folder import fetch
from flowmap_lora.start import FIRST, PART
from torch import Tensor, nn

from flowmap.mistaken import read
from flowmap.model import Sampling, WeightsError
from flowmap.published.layout import Brought
from flowmap.published.weights import Weights

from .published import latents

CLASSES = ("AnyFlowTransformer3DModel", "AnyFlowFARTransformer3DModel")
AROUND = re.compile(r"^(?:(?:base_model|model|transformer|lora|student|generator)\.)+|(?:modules_to_save|default)\.")
"""What peft and trainers put around a name."""
EMBEDDER = "condition_embedder.delta_embedder."
COPY = "original_module."
"""Before peft's copy of what it trains whole."""


def fused(found: Weights, base: str, times: float) -> tuple[Any, Brought]:
    """The network at `base` with the LoRA in `found` added and its second embedder in place, and what it is.

    times: alpha / rank, where `found` does not say alpha. A `WeightsError` that names what does not fit.
    """
    import diffusers

    folder = fetch(base)
    kind = read(folder / "transformer" / "config.json").get("_class_name")
    if kind not in CLASSES:
        raise WeightsError(f"base = {base!r}: its transformer is {kind}: must be one of {', '.join(CLASSES)}")
    net: Any = getattr(diffusers, kind).from_pretrained(base, subfolder="transformer", use_safetensors=True)
    pairs, whole, alphas = _parts(found)
    wrong = [*_misfits(net, pairs, whole)]
    if wrong:
        raise WeightsError(f"{found.file} is not of the network of {base}: {'; '.join(wrong)}")
    scales = _scales(found, pairs, alphas, times)
    with torch.no_grad():
        for layer, two in pairs.items():
            weight = net.get_submodule(layer).weight
            weight += (scales[layer] * (two["B"].double() @ two["A"].double())).to(weight.dtype)
        for name, value in whole.items():
            net.get_parameter(name).copy_(value)
    said = bool(alphas) or _told(found) is not None
    note = "" if said else f"alpha is taken for {times:g} times the rank, which the file does not say"
    size = read(folder / "flowmap.json").get("latent_shape")
    latent = latents(net.config) if size is None else tuple(size)
    return net, Brought(Sampling("flow_map", Sampling.of(folder).guidance), latent, note)


def _parts(found: Weights) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, float]]:
    """Pairs by layer, tensors of the second embedder by name, alphas by layer."""
    pairs: dict[str, dict[str, Tensor]] = {}
    whole, alphas, other = {}, {}, []
    for name, value in found.tensors.items():
        short = AROUND.sub("", name)
        if COPY in short:
            continue
        if (part := PART.fullmatch(short)) is not None:
            pairs.setdefault(part[1], {})["A" if part[2] in FIRST else "B"] = value
        elif "delta_embedder." in short:
            whole[EMBEDDER + short.partition("delta_embedder.")[2]] = value
        elif short.endswith(".alpha"):
            alphas[short.removesuffix(".alpha")] = float(value)
        else:
            other.append(name)
    if other:
        raise WeightsError(f"{found.file}: {other[0]} is neither of a LoRA nor of the second embedder")
    return pairs, whole, alphas


def _misfits(net: nn.Module, pairs: Mapping[str, Mapping[str, Tensor]], whole: Mapping[str, Tensor]) -> list[str]:
    layers = {name: tuple(m.weight.shape) for name, m in net.named_modules() if isinstance(m, nn.Linear)}
    wrong = [f"{layer} is no linear layer of it" for layer in pairs if layer not in layers]
    for layer in layers.keys() & pairs.keys():
        (rows, columns), has = layers[layer], {name: tuple(value.shape) for name, value in pairs[layer].items()}
        rank = has.get("A", (0, 0))[0]
        if has != {"A": (rank, columns), "B": (rows, rank)}:
            wrong.append(f"{layer} has {has}: must be A [rank, {columns}] and B [{rows}, rank]")
    own = {name: tuple(value.shape) for name, value in net.named_parameters() if name.startswith(EMBEDDER)}
    has = {name: tuple(value.shape) for name, value in whole.items()}
    wrong += [f"it has no {name}" for name in own if name not in has]
    wrong += [f"{name} is {has[name]}: must be {own.get(name)}" for name in has if has[name] != own.get(name)]
    return wrong


def _scales(
    found: Weights, pairs: Mapping[str, Mapping[str, Tensor]], alphas: Mapping[str, float], times: float
) -> dict[str, float]:
    """alpha / rank of every layer."""
    every = _told(found)
    scales = {}
    for layer, two in pairs.items():
        alpha = alphas.get(layer, every)
        scales[layer] = times if alpha is None else alpha / len(two["A"])
    return scales


def _told(found: Weights) -> float | None:
    """The alpha of all layers, where the file has it beside its tensors."""
    for name, value in found.notes.items():
        if name.rpartition(".")[2] in ("lora_alpha", "alpha") and isinstance(value, (int, float)):
            return float(value)
    return None
