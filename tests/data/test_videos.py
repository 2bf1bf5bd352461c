"""A folder of clips becomes data once; what is wrong with it is said before anything is encoded."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
from attrs import evolve
from flowmap_digits import TINY_WAN
from flowmap_digits.videos import clips
from flowmap_wan21 import Wan21

from flowmap import VideoFolder
from flowmap.data import DataError, LatentShards

BACKBONE = Wan21(TINY_WAN, text_tokens=12)
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> VideoFolder:
    path = tmp_path / "clips"
    path.mkdir()
    videos, prompts = clips(5, 0)
    for i, (video, prompt) in enumerate(zip(videos, prompts, strict=True)):
        frames = (video.permute(0, 2, 3, 1) * 255).byte().numpy()
        iio.imwrite(path / f"{i}.mp4", frames, plugin="pyav", codec="libx264", fps=8)
        (path / f"{i}.txt").write_text(prompt.text + "\n")
    return VideoFolder(path, frames=9, height=32, width=32, shard=2)


def test_clips_become_latents_and_texts(folder: VideoFolder, tmp_path: Path) -> None:
    data = folder.load(BACKBONE, tmp_path, device=CPU)
    assert len(data) == 5
    batch = data.batch([4, 0])
    codec = BACKBONE.codec(device=CPU, dtype=torch.float32)
    videos, prompts = clips(5, 0)
    texts = codec.encode_prompts([prompts[4].text, prompts[0].text])
    torch.testing.assert_close(batch.cond["text"], texts["text"])
    assert float((codec.decode(batch.x) - videos[[4, 0]]).square().mean()) < 2e-2  # lossy video, lossy latents
    assert batch.null["text"].shape == (1, *batch.cond["text"].shape[1:])


def test_what_is_encoded_is_used_again_until_something_changes(folder: VideoFolder, tmp_path: Path) -> None:
    folder.load(BACKBONE, tmp_path, device=CPU)
    index = tmp_path / "data" / "index.json"
    before = index.stat().st_mtime_ns
    folder.load(BACKBONE, tmp_path, device=CPU)
    assert index.stat().st_mtime_ns == before
    (Path(folder.path) / "0.txt").write_text("a five moving up slowly")
    folder.load(BACKBONE, tmp_path, device=CPU)
    assert index.stat().st_mtime_ns != before


def test_a_damaged_shard_is_named(folder: VideoFolder, tmp_path: Path) -> None:
    folder.load(BACKBONE, tmp_path, device=CPU)
    shard = tmp_path / "data" / "latents-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"latents-00001\.safetensors is missing or damaged"):
        LatentShards.open(tmp_path / "data")


def test_what_is_missing_is_named(folder: VideoFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.mp4 files"):
        VideoFolder(tmp_path).clips()
    with pytest.raises(DataError, match="has 9 frames: must have at least"):
        evolve(folder, frames=81).load(BACKBONE, tmp_path, device=CPU)
    with pytest.raises(DataError, match="encodes to disk"):
        folder.load(BACKBONE, None, device=CPU)
    (Path(folder.path) / "3.txt").unlink()
    with pytest.raises(DataError, match=r"1 clips have no caption, such as 3\.mp4"):
        folder.clips()


def test_a_clip_of_another_shape_is_cut_about_its_centre(folder: VideoFolder) -> None:
    assert evolve(folder, height=16, width=32).read(Path(folder.path) / "0.mp4").shape == (9, 3, 16, 32)
