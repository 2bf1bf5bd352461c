"""Several sets of adapters on one base, named as peft names them, chosen by the call and not by a global switch."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from flowmap import validators

from . import start

if TYPE_CHECKING:
    import torch
    from torch import nn

    from flowmap.model import Put, Rows

    from .sets import Sets


INIT = "Lora.init"


def _path(value: str | Path | None) -> str | None:
    return None if value is None else str(value)


def _ranks(value: Mapping[str, int]) -> Mapping[str, int]:
    return dict(value)


@frozen
class Lora:
    """ΔW = (alpha / rank) B A on self-attention and feed-forward, for the student on the time embedders too.

    targets: other layers than those, by a regular expression of whole names; the time embedders have adapters all the
    same. ranks: of some layers another rank, by regular expressions of whole names, the first that matches;
    alpha / rank, by which B A is scaled, is one for all. seed: of A.
    init: a LoRA file, or its directory, that the student's adapters begin as: rank and alpha are its own, 256 without
    one; its layers have adapters whatever else has, and what it does not name begins at zero. A file that says which
    base it was trained on is refused on another.
    """

    init: str | None = field(default=None, kw_only=True, converter=_path)
    rank: int = field(validator=validators.ge(1))
    alpha: float = field(validator=validators.gt(0.0))
    seed: int = 0
    targets: str | None = field(default=None)
    ranks: Mapping[str, int] = field(factory=dict, converter=_ranks)

    @targets.validator
    def _expression(self, attribute: Any, value: str | None) -> None:
        _compiled("targets", value or "")

    @ranks.validator
    def _numbers(self, attribute: Any, value: Mapping[str, int]) -> None:
        for pattern, rank in value.items():
            _compiled("ranks", pattern)
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise ValueError(f"Lora.ranks[{pattern!r}] = {rank!r}: must be an integer >= 1")

    @rank.default
    def _usual_rank(self) -> int:
        return 256 if self.init is None else start.usual(self.init, INIT)[0]

    @alpha.default
    def _usual_alpha(self) -> float:
        return 256.0 if self.init is None else start.usual(self.init, INIT)[1]

    @rank.validator
    def _of_the_file(self, attribute: Any, value: int) -> None:
        if self.init is not None and value != (own := start.usual(self.init, INIT)[0]):
            raise ValueError(f"Lora.rank = {value}: must be {own}, as in {self.init}, or not be given")

    def rank_of(self, layer: str) -> int:
        return next((rank for pattern, rank in self.ranks.items() if re.fullmatch(pattern, layer)), self.rank)

    def patterns(self, layers: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What peft is told of layers whose rank is another."""
        others = {layer: rank for layer in layers if (rank := self.rank_of(layer)) != self.rank}
        scaled = {layer: self.alpha / self.rank * rank for layer, rank in others.items()}
        return {"rank_pattern": others, "alpha_pattern": scaled} if others else {}


def _compiled(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"Lora.{name} = {pattern!r}: must be a regular expression: {error}") from None


def chosen(net: nn.Module, lora: Lora, usual: str, always: str | None = None, more: Collection[str] = ()) -> list[str]:
    """The linear layers of `net` that get adapters: by `lora.targets`, else `usual`; and `always`, and `more`.

    A ValueError where an expression of `lora` names none.
    """
    from torch import nn

    names = [
        name.removesuffix(".base_layer")
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear) and ".lora_" not in name
    ]
    expressions = {"targets": lora.targets or usual, **{f"ranks[{pattern!r}]": pattern for pattern in lora.ranks}}
    for said, pattern in expressions.items():
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(
                f"Lora.{said} = {pattern!r}: no linear layer of {type(net).__name__} has such a name; there are "
                f"{', '.join(names[:6])} and {max(0, len(names) - 6)} more"
            )
    wanted = re.compile("|".join(f"(?:{pattern})" for pattern in (lora.targets or usual, always) if pattern))
    return [name for name in names if wanted.fullmatch(name) or name in more]


def give(
    net: nn.Module, role: str, lora: Lora, usual: str, times: str | None, pipeline: str, copies: start.Copies
) -> Lora:
    """Adapters of that role, on the embedders `times` too, a student's as in `lora.init` if there is such a file.

    pipeline: the class of diffusers that knows its layouts; copies: as in `start.pairs`. Returns the `Lora` that says
    what the role has now.
    """
    pairs = of_init(net, role, lora, pipeline, copies)
    lora = fitted(lora, pairs)
    add_adapter(net, role, lora, chosen(net, lora, usual, times, pairs), pairs)
    return lora


def of_init(net: nn.Module, role: str, lora: Lora, pipeline: str, copies: start.Copies) -> start.Pairs:
    """What a role's adapters begin as: of a student, those of a file."""
    return {} if role != "student" or lora.init is None else start.pairs(lora.init, net, pipeline, INIT, copies)


def fitted(lora: Lora, pairs: start.Pairs) -> Lora:
    """With the ranks of a file's layers; a ValueError where `lora.ranks` says others."""
    found = {re.escape(layer): len(a) for layer, (a, _) in pairs.items() if len(a) != lora.rank_of(layer)}
    for layer, (a, _) in pairs.items():
        if any(re.fullmatch(p, layer) and rank != len(a) for p, rank in lora.ranks.items()):
            raise ValueError(f"Lora.ranks: {layer} has rank {len(a)} in {lora.init}, and {lora.rank_of(layer)} here")
    return evolve(lora, ranks={**found, **lora.ranks}) if found else lora


def begun(lora: Lora, pairs: start.Pairs, name: str) -> torch.Tensor | None:
    """Of a file's pairs the tensor `name` of a set; in B what the file scales by otherwise than alpha / rank."""
    layer, _, part = name.removesuffix(".weight").rpartition(".lora_")
    if layer not in pairs:
        return None
    a, b = pairs[layer]
    return a if part == "A" else b / (lora.alpha / lora.rank)


def add_adapter(net: nn.Module, name: str, lora: Lora, targets: Collection[str], pairs: start.Pairs) -> None:
    """Give the layers `targets` of `net` a set of adapters, `fill_adapter`; the rest trains or not as before."""
    import torch

    from .linear import LoraLinear

    for path, layer in [(path, net.get_submodule(path)) for path, _ in net.named_modules() if path in targets]:
        if not isinstance(layer, LoraLinear):
            assert isinstance(layer, torch.nn.Linear)
            owner, _, own = path.rpartition(".")
            layer = LoraLinear(layer, sets(net)).train(layer.training)
            setattr(net.get_submodule(owner), own, layer)
        layer.add(name, lora.rank_of(path), lora.alpha / lora.rank)
    if not next(net.parameters()).is_meta:
        fill_adapter(net, name, lora, _copy, pairs)


def _copy(p: torch.Tensor, rows: Rows) -> None:
    p.data.copy_(rows(slice(None)))


def fill_adapter(net: nn.Module, name: str, lora: Lora, put: Put, pairs: start.Pairs) -> None:
    """The numbers of a set, a layer at a time: those of a file's `pairs`, else A random from `lora.seed` and B zero, as
    peft draws them for all layers in their order."""
    import torch
    from torch import nn

    from .linear import LoraLinear

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lora.seed)
        for path, layer in net.named_modules():
            if not isinstance(layer, LoraLinear) or name not in layer.scaling:
                continue
            a, b = layer.pair(name)
            first = nn.Linear(layer.in_features, len(a), bias=False).weight.detach()
            last = nn.Linear(len(a), layer.out_features, bias=False).weight.detach()
            nn.init.kaiming_uniform_(first, a=math.sqrt(5))  # over what the layer was made with
            nn.init.zeros_(last)
            drawn = {"A": first.to(layer.dtype).float(), "B": last}
            for part, p in (("A", a), ("B", b)):
                value = begun(lora, pairs, f"{path}.lora_{part}.weight")
                put(p, (drawn[part] if value is None else value).__getitem__)


def adapter_parameters(net: nn.Module, name: str) -> Mapping[str, nn.Parameter]:
    """The set's tensors, named without the set: `blocks.0.attn1.to_q.lora_A.weight`."""
    return {key.replace(f".{name}.", "."): p for key, p in net.named_parameters() if f".{name}." in key}


def sets(net: nn.Module) -> Sets:
    """What says which set of adapters is used in `net`, whose layers all ask it."""
    from .sets import Sets

    found: Sets = vars(net).setdefault("_sets", Sets())
    return found


def parts(net: nn.Module, name: str | None) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """(name, W, ΔW) of every tensor of the base, under its own names, one by one; ΔW of the set `name`, float32.

    Of a quantised base W as it was before, from where it was read.
    """
    from .linear import LoraLinear
    from .quantised import weights

    layers = {f"{path}.weight": layer for path, layer in net.named_modules() if isinstance(layer, LoraLinear)}
    for own, _, tensor, rows in weights(net):
        layer = layers.get(own)
        there = layer is not None and name is not None and name in layer.scaling
        value = tensor.detach() if rows is None else rows(slice(None)).to(tensor.device)
        yield own, value, layer.change(name).to(value.device) if layer and name and there else None
