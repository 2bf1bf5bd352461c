"""What adapters sit on, and what tells it from another base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmap_lora.files import fingerprint, of
from flowmap_lora.roles import INIT
from flowmap_lora.start import located

from flowmap.model import Rows, origin

if TYPE_CHECKING:
    from .network import DiffusersFlowMap
    from .settings import Settings


def about(spec: Settings, u: DiffusersFlowMap) -> dict[str, Any]:
    """What is known of the base that adapters were trained on."""
    base = {"path": None if spec.path is None else origin(spec.path), "dtype": str(u.computes).split(".")[1]}
    fused = {} if spec.fuse is None else {"fused": Path(spec.fuse).name}
    return {"fingerprint": fingerprint(u.net), "gamma": spec.gamma, "guidance": u.guidance, **fused, **base}


def began(spec: Settings, u: DiffusersFlowMap, rows: Callable[[str], Rows] | None = None) -> None:
    """`check` of the file that a student's adapters begin as, where there is one."""
    if u.role == "student" and u.lora is not None and u.lora.init is not None:
        check(spec, u, located(u.lora.init, INIT), rows)


def check(spec: Settings, u: DiffusersFlowMap, file: Path, rows: Callable[[str], Rows] | None = None) -> None:
    """A ValueError where `u` is not what the adapters in a LoRA file were trained on, as far as the file says that.

    rows: of the base, where `u` has no numbers or has them in pieces.
    """
    if not (said := of(file)):
        return
    for name, ours in (("gamma", spec.gamma), ("fingerprint", fingerprint(u.net, rows=rows))):
        if (theirs := said.get(name, ours)) != ours:
            on = f"{said.get('path')!r}" + (f" with fuse = {said['fused']!r}" if said.get("fused") else "")
            what = f"has {name} = {theirs}" if name == "gamma" else f"was trained on another base, {on}"
            raise ValueError(f"{file}: {what}, and {spec.about().name} has {ours}: give the one that it was trained on")
