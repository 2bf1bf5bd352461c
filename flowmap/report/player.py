"""The any-step player: prompts × models, a slider over numbers of steps, all clips in step."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from attrs import frozen

from ..training.store.health import ALBUM, PREVIEWS

TOLD = """<p>Every clip of a row starts from the same noise. Move the slider: the teacher needs many steps, a good
student few. On the right, unmoved, the teacher at {fine} steps, which is what the student is to match.</p>"""
RENOISED = """<p><small><b>Re-noised</b>: the same weights sampled as a consistency model is: jump to a clean clip, add
fresh noise, jump again. A flow map follows the path from noise to clip instead.</small></p>"""
BAR = """<div class="bar"><label>steps <input id="steps" type="range" min="0" max="{last}" value="{first}" step="1"
aria-label="number of sampling steps"><output id="told" for="steps"></output></label>
<div class="row"><button id="play" type="button"{still}>Pause</button><label{still}>frame <input id="frame" type="range"
min="0" max="{frames}" value="0" aria-label="frame"></label>{more}</div></div>"""


@frozen
class Album:
    """Clips on disk: `files` by model, number of steps and prompt."""

    folder: Path
    told: Mapping[str, Any]

    @classmethod
    def of(cls, run: Path) -> Album | None:
        """The evaluation's; else the newest of a stage's end; None where there is none."""
        newest = sorted((run / PREVIEWS).glob(f"*/{ALBUM}"))
        for file in (run / "samples" / ALBUM, *newest[::-1]):
            try:
                return cls(file.parent, json.loads(file.read_text()))
            except (OSError, ValueError):
                continue
        return None

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(clip["model"] for clip in self.told["clips"]))

    def steps_of(self, model: str) -> list[int]:
        return sorted(clip["steps"] for clip in self.told["clips"] if clip["model"] == model)

    @property
    def steps(self) -> list[int]:
        """Those of the slider: every model has a clip there."""
        return sorted(set.intersection(*({*self.steps_of(model)} for model in self.models)))

    @property
    def fine(self) -> tuple[str, int] | None:
        """The first model at more steps than the slider has, which stands still beside it."""
        model = self.models[0]
        most = self.steps_of(model)[-1]
        return (model, most) if most > self.steps[-1] else None


def section(run: Path) -> str:
    """HTML; "" where there are no clips."""
    album = Album.of(run)
    if album is None or not album.steps:
        return ""
    told, renoised = album.told, [model for model in album.models if "re-noised" in model]
    more = '<label><input id="more" type="checkbox"> re-noised, too</label>' if renoised else ""
    frames = int(told["frames"])
    middle = min(range(len(album.steps)), key=lambda k: abs(album.steps[k] - 4))
    bar = BAR.format(
        last=len(album.steps) - 1, first=middle, frames=frames - 1, still=" hidden" if frames == 1 else "", more=more
    )
    rows = "".join(_row(k, prompt, album) for k, prompt in enumerate(_named(told["prompts"])))
    explained = (TOLD.format(fine=album.fine[1]) if album.fine else "") + (RENOISED if renoised else "")
    data = json.dumps(_data(album)).replace("<", "\\u003c")
    return (
        f'<h2>Any number of steps</h2>{explained}<div class="player">{bar}{rows}</div>'
        f'<noscript><p class="bad">The player needs JavaScript.</p></noscript>'
        f'<script id="album" type="application/json">{data}</script>'
    )


def _named(prompts: Sequence[str]) -> list[str]:
    """A prompt that was before is told to be another sample of it."""
    before = [prompts[:k].count(prompt) for k, prompt in enumerate(prompts)]
    return [f"{prompt}, sample {n + 1}" if n else prompt for prompt, n in zip(prompts, before, strict=True)]


def _row(k: int, prompt: str, album: Album) -> str:
    shown = [_cell(k, model, None) for model in album.models]
    if album.fine is not None:
        model, most = album.fine
        shown.append(_cell(k, model, most))
    columns = len(shown) - sum("re-noised" in model for model in album.models)
    style = f"grid-template-columns:repeat({columns},1fr)"
    return f'<div class="prompt">{escape(prompt)}</div><div class="clips" style="{style}">{"".join(shown)}</div>'


def _cell(k: int, model: str, steps: int | None) -> str:
    fixed = "" if steps is None else f' data-steps="{steps}"'
    hidden = ' class="more" hidden' if "re-noised" in model else ""
    label = model if steps is None else f"{model} at {steps} steps"
    canvas = f'<canvas data-prompt="{k}" data-model="{escape(model)}"{fixed}></canvas>'
    return f"<figure{hidden}>{canvas}<figcaption>{escape(label)}</figcaption></figure>"


def _data(album: Album) -> dict[str, Any]:
    """What the script needs: pictures as data, and which of them a model shows at a number of steps."""
    files: list[str] = []
    clips: dict[str, list[int]] = {}
    calls: dict[str, int] = {}
    wanted = {*album.steps, *([album.fine[1]] if album.fine else [])}
    for clip in album.told["clips"]:
        if clip["steps"] not in wanted:
            continue
        key = f"{clip['model']}/{clip['steps']}"
        clips[key], calls[key] = [], clip["calls"]
        for name in clip["files"]:
            clips[key].append(len(files))
            files.append(f"data:image/webp;base64,{b64encode((album.folder / name).read_bytes()).decode()}")
    shared = {name: album.told[name] for name in ("rate", "frames", "columns", "height", "width")}
    return {**shared, "steps": album.steps, "clips": clips, "calls": calls, "files": files}
