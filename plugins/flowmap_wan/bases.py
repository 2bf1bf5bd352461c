"""What adapters sit on, and what tells it from another base: on another one they are another student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmap_lora.files import fingerprint, of
from flowmap_lora.roles import INIT
from flowmap_lora.start import located

from flowmap.model import Rows, origin

if TYPE_CHECKING:
    from .network import WanFlowMap
    from .settings import WanSettings

UNSEEN = ("gate_value", "deltatime_type", "full_chunk_limit", "chunk_partition")
"""Of the base's config, what no tensor shows."""


def about(u: WanFlowMap, path: str | None, fuse: str | None = None) -> dict[str, Any]:
    """What is written of the base of a student, which is at `path`, with `fuse` in it, and of the guidance that its
    adapters brought."""
    dtype = str(u.dtype).split(".")[1]  # that the base was in
    fused = {} if fuse is None else {"fused": Path(fuse).name}
    return {**_seen(u), **fused, "guidance": u.guidance, "dtype": dtype, "path": None if path is None else origin(path)}


def began(spec: WanSettings, u: WanFlowMap, rows: Callable[[str], Rows] | None = None) -> None:
    """`check` of the file that a student's adapters begin as, where there is one."""
    if u.role == "student" and u.lora is not None and u.lora.init is not None:
        check(spec, u, located(u.lora.init, INIT), rows)


def check(spec: WanSettings, u: WanFlowMap, file: Path, rows: Callable[[str], Rows] | None = None) -> None:
    """A ValueError where `u`, on the base of `spec`, is not what the adapters in a LoRA file were trained on.

    rows: of the base, where `u` has no numbers or has them in pieces.
    """
    theirs = of(file)
    ours = _seen(u, rows) if theirs else {}
    for name in [name for name in ours if name in theirs and theirs[name] != ours[name]]:
        if name != "fingerprint":
            raise ValueError(
                f"{file}: its {name} is {theirs[name]}, that of {type(spec).__name__} is {ours[name]}: give the one it "
                "was made with"
            )
        trained = f", {theirs['path']!r}" if theirs.get("path") else ""
        trained += f" with fuse = {theirs['fused']!r}" if theirs.get("fused") else ""
        raise ValueError(
            f"{file}: its adapters were trained on other weights than those of {spec.path or 'this spec'} (fingerprint "
            f"{theirs[name][:12]}, not {ours[name][:12]}): give {type(spec).__name__} the base that they were trained "
            f"on{trained}; a student's directory has them fused already"
        )


def _seen(u: WanFlowMap, rows: Callable[[str], Rows] | None = None) -> dict[str, Any]:
    said = {key: u.net.config[key] for key in UNSEEN if key in u.net.config}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in said.items()}
    return {**plain, "fingerprint": fingerprint(u.net, u.whole, rows)}
