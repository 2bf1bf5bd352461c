"""Clips decoded and scaled, and encoded samples read, beside another checkout.

python -m benchmarks.clips --other DIR [--out FILE]

CPU seconds a frame of 81, to 480 × 832; memory of decoding a clip above that at rest; CPU milliseconds a sample of
Wan's size from a shard, the first time, when its hash is compared, and later. Everything in one thread. "pyav alone"
decodes, and does no more.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .against import beside, write

FRAMES, SIZE = 81, (480, 832)
SAMPLES, LATENT, TEXT, TOKENS = 8, (21, 16, 60, 104), (512, 4096), 100

DECODING = r"""
import json, os, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from flowmap import VideoFolder
import av

def folder(name):
    return VideoFolder(Path(os.environ["CLIPS"]) / name, 81, 480, 832)

def rate(work):
    best = float("inf")
    for _ in range(3):
        before = time.process_time()
        work()
        best = min(best, time.process_time() - before)
    return 81 / best

def alone(name):
    with av.open(str(Path(os.environ["CLIPS"]) / name / "a.mp4")) as file:
        for frame in file.decode(video=0):
            pass

made = {}
for name in ("480p", "720p"):
    clips = folder(name)
    (clip,) = clips.clips()
    made[f"seconds a frame, {name}"] = 1 / rate(lambda: clips.read(clip))
    made[f"seconds a frame, {name}, pyav alone"] = 1 / rate(lambda: alone(name))
print(json.dumps(made))
"""

MEMORY = r"""
import json, os
from pathlib import Path
import torch
torch.set_num_threads(1)
from flowmap import VideoFolder
import av

small = VideoFolder(Path(os.environ["CLIPS"]) / "small", 2, 32, 32)
for clip in small.clips():  # what libraries take once
    small.read(clip)


def kilobytes(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])


Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
rest = kilobytes("VmRSS")
clips = VideoFolder(Path(os.environ["CLIPS"]) / "720p", 81, 480, 832)
(clip,) = clips.clips()
video = clips.read(clip)
print(json.dumps({"MB to decode a clip, 720p": (kilobytes("VmHWM") - rest) / 1024}))
"""

SHARDS = r"""
import json, os, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from flowmap.data import LatentShards
from safetensors import safe_open

path = Path(os.environ["SHARDS"])
count = int(os.environ["SAMPLES"])

def milliseconds(work):
    before = time.process_time()
    work()
    return (time.process_time() - before) / count * 1e3

def epoch():
    for i in range(0, count, 2):
        data.batch([i, i + 1])

def raw():
    with safe_open(path / "shard-00000.safetensors", framework="pt") as file:
        x, text = file.get_slice("x"), file.get_slice("cond/text")
        for i in range(count):
            x[i].clone(), text[100 * i : 100 * i + 100].clone()

data = LatentShards.open(path)
first = milliseconds(epoch)
later = min(milliseconds(epoch) for _ in range(3))
print(json.dumps({
    "ms a sample, the first time": first,
    "ms a sample, later": later,
    "ms a sample, raw slices": min(milliseconds(raw) for _ in range(3)),
}))
"""


def clip(path: Path, height: int, width: int, frames: int) -> None:
    import av

    path.parent.mkdir(parents=True)
    path.with_suffix(".txt").write_text("waves")
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=16, options={"crf": "23", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for k in range(frames):
            red = 127 + 100 * np.sin((x + 3 * k) / 37) + 20 * np.sin(y / 5)
            green, blue = 127 + 100 * np.cos((y - 2 * k) / 23), (x + y + 4 * k) % 256
            picture = np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))


def shards(path: Path) -> None:
    """Noise as latents, and texts of 100 tokens in bfloat16, as Wan's are."""
    from flowmap.data.format import Plan
    from flowmap.data.writer import Made, write

    generator = torch.Generator().manual_seed(0)

    class Maker:
        def null(self) -> dict[str, torch.Tensor]:
            return {"text": torch.zeros(1, *TEXT, dtype=torch.bfloat16)}

        def samples(self, first: int, last: int) -> Made:
            n = last - first
            text = torch.zeros(n, *TEXT)
            text[:, :TOKENS] = torch.randn(n, TOKENS, TEXT[1], generator=generator)
            prompts = [f"prompt {k}" for k in range(first, last)]
            return Made(torch.randn(n, *LATENT, generator=generator), prompts, {"text": text.bfloat16()})

    write(path, Plan(SAMPLES, SAMPLES, {}, {}), Maker)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/clips.json"))
    options = parser.parse_args()
    other, told = options.other.resolve(), {"OMP_NUM_THREADS": 1, "SAMPLES": SAMPLES}
    with tempfile.TemporaryDirectory() as folder:
        clips, data = Path(folder) / "clips", Path(folder) / "shards"
        for name, (height, width), frames in (("480p", SIZE, 81), ("720p", (720, 1280), 81), ("small", (32, 32), 2)):
            clip(clips / name / "a.mp4", height, width, frames)
        shards(data)
        results = {}
        for code in (DECODING, MEMORY, SHARDS):
            results |= beside(other, code, rounds=options.rounds, CLIPS=clips, SHARDS=data, **told)
    write(options.out, other, results)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
