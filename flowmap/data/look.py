"""A page to look at encoded data with: samples, decoded, and their captions, in one file that fetches nothing."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import write_bytes
from ..model import FlowMapSpec
from .format import Index, Origin
from .shards import LatentShards

SAMPLES = 12
LARGEST = 320
"""Pixels of a picture's longer side on the page."""
RATE = 16.0
"""Frames a second, where the data does not say its own."""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.4 system-ui, sans-serif; margin: 1rem; color: CanvasText; background: Canvas }}
h1 {{ font-size: 1.2rem }} pre {{ white-space: pre-wrap; font-size: .85rem }}
main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)) }}
figure {{ margin: 0 }} img {{ width: 100%; height: auto; display: block }} figcaption {{ overflow-wrap: anywhere }}
small {{ opacity: .7 }}
</style></head><body><h1>{title}</h1><main>
{figures}
</main><pre>{said}</pre></body></html>
"""


def look(
    path: Path,
    backbone: FlowMapSpec,
    out: Path,
    said: Sequence[str],
    *,
    device: torch.device,
    samples: int = SAMPLES,
) -> None:
    """Write the page `out`: so many samples from everywhere in the data in `path`, moving, and `said` below them."""
    data, codec = LatentShards.open(path), backbone.codec(device=device, dtype=torch.float32)
    count = min(samples, len(data))
    numbers = [k * len(data) // count for k in range(count)]
    prompts, origins = [*data.prompts()], _origins(data.index)
    figures = []
    for k in numbers:
        video = codec.decode(data.sample(k).x[None].to(device, torch.float32))[0]
        picture = b64encode(_moving(video, _rate(data.index, origins[k] if origins else None))).decode()
        what = escape(f"sample {k}{_from(origins[k]) if origins else ''}")
        figures.append(
            f'<figure><img alt="{what}" src="data:image/webp;base64,{picture}"><figcaption>{escape(prompts[k])}<br>'
            f"<small>{what}</small></figcaption></figure>"
        )
    title = escape(f"{data.path.name}: {count} of {len(data)} samples, decoded")
    page = PAGE.format(title=title, figures="\n".join(figures), said=escape("\n".join(said)))
    write_bytes(out, page.encode("utf-8", "replace"))


def _origins(index: Index) -> list[Origin]:
    return [one for shard in index.shards for one in index.origins.get(shard.file, ())]


def _from(origin: Origin) -> str:
    rate = "" if origin.rate is None else f", {origin.rate:.4g} frames a second"
    cut = f", {origin.cut:.0%} cut away" if origin.cut >= 0.005 else ""
    there = f" from frame {origin.first} on" if origin.first else ""
    return f": {origin.clip}{there}{rate}{cut}{''.join(f', {remark}' for remark in origin.remarks)}"


def _rate(index: Index, origin: Origin | None) -> float:
    fps = index.plan.made_from.get("folder", {}).get("fps")
    return float(fps) if isinstance(fps, float | int) else (origin.rate if origin and origin.rate else RATE)


def _moving(video: Tensor, rate: float) -> bytes:
    """[F, 3, H, W] in [0, 1] as WebP: every browser plays it, without a codec of the system's."""
    from PIL import Image

    pixels = (video.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    pictures = [Image.fromarray(frame) for frame in pixels]
    for picture in pictures:
        picture.thumbnail((LARGEST, LARGEST))
    content = BytesIO()
    pictures[0].save(
        content,
        format="WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=[round(1000 * (k + 1) / rate) - round(1000 * k / rate) for k in range(len(pictures))],
        loop=0,
        quality=80,
    )
    return content.getvalue()
