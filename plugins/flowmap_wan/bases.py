"""What adapters sit on, and what tells it from another base: on another one they are another student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmap_lora.files import fingerprint, of

from flowmap.model import origin

if TYPE_CHECKING:
    from .network import WanFlowMap
    from .settings import WanSettings

UNSEEN = ("gate_value", "deltatime_type", "full_chunk_limit", "chunk_partition")
"""Of the base's config, what no tensor shows."""


def about(u: WanFlowMap, path: str | None) -> dict[str, Any]:
    """What is written of the base of a student, which is at `path`, and of the guidance that its adapters brought."""
    dtype = str(u.dtype).split(".")[1]  # that the base was in
    return {**_seen(u), "guidance": u.guidance, "dtype": dtype, "path": None if path is None else origin(path)}


def check(spec: WanSettings, u: WanFlowMap, file: Path) -> None:
    """A ValueError where `u`, on the base of `spec`, is not what the adapters in a LoRA file were trained on."""
    theirs, ours = of(file), _seen(u)
    for name in [name for name in ours if name in theirs and theirs[name] != ours[name]]:
        if name != "fingerprint":
            raise ValueError(
                f"{file}: its {name} is {theirs[name]}, that of {type(spec).__name__} is {ours[name]}: give the one it "
                "was made with"
            )
        trained = f", {theirs['path']!r}" if theirs.get("path") else ""
        raise ValueError(
            f"{file}: its adapters were trained on other weights than those of {spec.path or 'this spec'} (fingerprint "
            f"{theirs[name][:12]}, not {ours[name][:12]}): give {type(spec).__name__} the base that they were trained "
            f"on{trained}; a student's directory has them fused already"
        )


def _seen(u: WanFlowMap) -> dict[str, Any]:
    said = {key: u.net.config[key] for key in UNSEEN if key in u.net.config}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in said.items()}
    return {**plain, "fingerprint": fingerprint(u.net, u.whole)}
