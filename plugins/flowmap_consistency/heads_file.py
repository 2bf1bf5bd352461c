"""`heads.safetensors` of a student's directory: the heads, and which grid they are on. The backbone's own directory is
in `network/`: at the top a program that knows no heads would take it for the student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decoder import Decoder

FILE, NETWORK = "heads.safetensors", "network"


def write(u: Decoder, shift: float, file: Path) -> None:
    """Heads stay float32: they are sums with what the layer is rounded to."""
    from safetensors.torch import save_file

    told = {"layer": u.layer, "times": u.times.tolist(), "shift": shift}
    tensors = {name: p.detach().cpu().contiguous() for name, p in u.bank.named_parameters()}
    save_file(tensors, file, {"decoding": json.dumps(told)})


def told(folder: Path) -> dict[str, Any]:
    """layer, times, shift: what the file in a student's directory says of its heads."""
    from safetensors import safe_open

    from flowmap.model import WeightsError

    with safe_open(folder / FILE, framework="pt") as opened:
        found: dict[str, Any] | None = json.loads((opened.metadata() or {}).get("decoding", "null"))
    if found is None:
        raise WeightsError(f"{folder / FILE}: does not say which grid its heads are on")
    return found


def read(u: Decoder, folder: Path) -> None:
    """The heads in a student's directory into `u`; a `WeightsError` where they do not fit."""
    from safetensors.torch import load_file

    from flowmap.model import WeightsError

    try:
        u.bank.load_state_dict(load_file(folder / FILE, device=str(u.bank.weight.device)))
    except RuntimeError as error:
        raise WeightsError(f"{folder / FILE}: {error}") from None
