"""A folder of clips becomes data once; what is wrong with it is said before anything is encoded."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytest
import torch
from attrs import evolve
from flowmap_digits import TINY_WAN
from flowmap_digits.videos import clips
from flowmap_wan21 import Wan21

from flowmap import VideoFolder
from flowmap.cli import main
from flowmap.data import BadClipsError, DataError, LatentShards, fingerprint
from flowmap.data.check import check
from flowmap.data.clip import Clip
from flowmap.data.decode import Video

from .made import content
from .test_decode import add

BACKBONE = Wan21(TINY_WAN, text_tokens=12)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("clips")
    videos, prompts = clips(5, 0)
    for i, (video, prompt) in enumerate(zip(videos, prompts, strict=True)):
        frames = (video.permute(0, 2, 3, 1) * 255).byte().numpy()
        iio.imwrite(path / f"{i}.mp4", frames, plugin="pyav", codec="libx264", fps=16)
        (path / f"{i}.txt").write_text(prompt.text + "\n")
    return path


@pytest.fixture
def folder(files: Path, tmp_path: Path) -> VideoFolder:
    return VideoFolder(shutil.copytree(files, tmp_path / "clips"), frames=9, height=32, width=32, shard=2)


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


def test_a_damaged_shard_is_named_when_it_is_read(folder: VideoFolder, tmp_path: Path) -> None:
    folder.load(BACKBONE, tmp_path, device=CPU)
    shard = tmp_path / "data" / "shard-00001.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    data = LatentShards.open(tmp_path / "data")
    assert len(data.batch([0, 1, 2]).x) == 3
    with pytest.raises(DataError, match=r"shard-00001\.safetensors, sample 1 is damaged"):
        data.batch([3])


def test_encoding_goes_on_where_it_was_cut_short(folder: VideoFolder, tmp_path: Path, monkeypatch: Any) -> None:
    folder.load(BACKBONE, tmp_path, device=CPU)
    whole = content(tmp_path / "data")
    read: list[str] = []

    def reading(self: VideoFolder, clip: Clip, first: int) -> Video:
        read.append(clip.key)
        if len(read) == 4:
            raise KeyboardInterrupt
        return real(self, clip, first)

    real = VideoFolder.read
    monkeypatch.setattr(VideoFolder, "read", reading)
    with pytest.raises(KeyboardInterrupt):
        folder.encode(BACKBONE, tmp_path / "out", device=CPU)
    folder.encode(BACKBONE, tmp_path / "out", device=CPU)
    assert read == [*(f"{k}.mp4" for k in (0, 1, 2, 3)), *(f"{k}.mp4" for k in (2, 3, 4))]
    assert content(tmp_path / "out") == whole
    again = evolve(folder, null_prompt="blurred")
    with pytest.raises(DataError, match='null_prompt = "", now "blurred"'):
        again.encode(BACKBONE, tmp_path / "out", device=CPU)


def test_a_tar_gives_what_the_folder_gives(folder: VideoFolder, tmp_path: Path) -> None:
    """A caption from .txt or from .json, members in any order, one directory deep."""
    path = tmp_path / "tars" / "clips.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for file in sorted(Path(folder.path).iterdir(), reverse=True):
            name, data = f"./part/{file.name}", file.read_bytes()
            if file.name == "3.txt":
                name, data = "./part/3.json", json.dumps({"fps": 8, "caption": data.decode()}).encode()
            add(tar, name, data)
        add(tar, "./part/4.pkl", b"nobody reads this")
    one = folder.load(BACKBONE, tmp_path / "a", device=CPU).batch(range(5))
    for source in (path, path.parent):
        assert [clip.key for clip in VideoFolder(source).clips()] == [f"part/{k}" for k in range(5)]
    two = evolve(folder, path=path).load(BACKBONE, tmp_path / "b", device=CPU).batch(range(5))
    torch.testing.assert_close((one.x, one.cond), (two.x, two.cond), rtol=0, atol=0)


def test_what_is_missing_is_named(folder: VideoFolder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there are no clips"):
        VideoFolder(tmp_path / "empty").clips()
    with pytest.raises(DataError, match="'nowhere': there is no such directory"):
        VideoFolder("nowhere").clips()
    with pytest.raises(DataError, match="has 9 frames at 16 a second: must have at least"):
        evolve(folder, frames=81).load(BACKBONE, tmp_path, device=CPU)
    with pytest.raises(DataError, match="encodes to disk"):
        folder.load(BACKBONE, None, device=CPU)
    (Path(folder.path) / "3.txt").unlink()
    with pytest.raises(DataError, match=r"(?s)1 of 5 clips cannot be encoded, and nothing.*3\.mp4 has no caption"):
        folder.load(BACKBONE, tmp_path, device=CPU)


def test_a_clip_of_another_shape_is_cut_about_its_centre(folder: VideoFolder) -> None:
    assert evolve(folder, height=16, width=32).read(folder.clips()[0]).frames.shape == (9, 3, 16, 32)


def test_the_fingerprint_is_of_clips_and_cut(folder: VideoFolder) -> None:
    before = fingerprint(folder)
    assert before == fingerprint(evolve(folder, shard=3)) != fingerprint(evolve(folder, frames=5))
    (Path(folder.path) / "0.txt").write_text("a five moving up slowly")
    assert fingerprint(folder) != before


def test_the_command_line(folder: VideoFolder, tmp_path: Path, capsys: Any) -> None:
    """Clips to data that a check finds sound; then clips that are no longer the same."""
    line = ["data", "encode", folder.path, "--backbone", "tiny_wan", "--out", str(tmp_path / "out")]
    assert main([*line, "--size", "9x32x32"]) == 0
    check_it = f"flowmap data check {tmp_path / 'out'} --backbone tiny_wan --look page.html"
    assert f"5 samples; look at them with `{check_it}`" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "out"), "--backbone", "tiny_wan"]) == 0
    for wrong, said in (
        ([*line, "--size", "81x32x32"], r"folder.frames = 9, now 81"),
        ([*line[:2], str(tmp_path / "none"), *line[3:]], "there is no such directory"),
        ([*line[:4], "wan99", *line[5:]], "no plugin knows the backbone 'wan99'"),
        ([*line[:4], "tiny_wam", *line[5:]], "did you mean 'tiny_wan'?"),
        (["data", "encod", *line[2:]], "synth, encode, check; did you mean 'encode'?"),
        ([*line, "--dtype", "bfloat61"], "float32, bfloat16; did you mean 'bfloat16'?"),
    ):
        capsys.readouterr()
        assert main(wrong) == 2
        assert said in capsys.readouterr().err


# ---------------------------------------------------------------- clips that cannot be encoded
def damaged(file: Path) -> None:
    """Its head is that of a video; its pictures are not."""
    content = bytearray(file.read_bytes())
    start, end = content.find(b"mdat") + 4, content.find(b"moov") - 4
    content[start:end] = bytes(end - start)
    file.write_bytes(content)


def test_what_files_say_of_themselves_is_known_before_anything_is_begun(folder: VideoFolder, tmp_path: Path) -> None:
    clips, out = Path(folder.path), tmp_path / "out"
    (clips / "1.mp4").write_bytes(b"no video")
    frames = iio.imread(clips / "3.mp4", plugin="pyav")
    iio.imwrite(clips / "3.mp4", frames[:5], plugin="pyav", codec="libx264", fps=16)
    with pytest.raises(DataError, match="2 of 5 clips cannot be encoded, and nothing was begun") as told:
        folder.encode(BACKBONE, out, device=CPU)
    assert "1.mp4 is no video" in str(told.value) and "3.mp4 has 5 frames at 16 a second: must have at least 9" in str(
        told.value
    )
    assert not out.exists()


def test_clips_that_cannot_be_decoded_are_all_named_and_the_others_kept(
    folder: VideoFolder, tmp_path: Path, monkeypatch: Any
) -> None:
    for name in ("0.mp4", "4.mp4"):
        damaged(Path(folder.path) / name)
    out = tmp_path / "out"
    with pytest.raises(BadClipsError, match="2 of 5 clips cannot be encoded; the others are") as told:
        folder.encode(BACKBONE, out, device=CPU)
    assert all(name in str(told.value) for name in ("0.mp4 is no video", "4.mp4 is no video", "--skip-bad"))
    assert (out / "shard-00001.safetensors").is_file() and not (out / "index.json").exists()
    read: list[str] = []
    real = VideoFolder.read
    monkeypatch.setattr(VideoFolder, "read", lambda self, clip, at: read.append(clip.key) or real(self, clip, at))
    data = evolve(folder, bad="skip").encode(BACKBONE, out, device=CPU)
    assert read == ["0.mp4", "1.mp4", "4.mp4"]  # the whole shard is not made again
    assert data is not None and len(data) == 3
    assert [(one.file, one.sample) for one in data.index.skipped] == [
        ("shard-00000.safetensors", "0.mp4"),
        ("shard-00002.safetensors", "4.mp4"),
    ]
    assert [*data.prompts()] == [Path(folder.path, f"{k}.txt").read_text().strip() for k in (1, 2, 3)]
    found = {finding.kind: finding.text for finding in check(out) if finding.kind != "note"}
    assert found == {"warning": "2 more could not be made, and were left out: 0.mp4, 4.mp4"}


def test_what_was_left_out_stays_so_when_a_file_is_made_again(
    folder: VideoFolder, tmp_path: Path, monkeypatch: Any
) -> None:
    """Of the last shard nothing is left, so that it has no file."""
    damaged(Path(folder.path) / "4.mp4")
    skipping = evolve(folder, bad="skip")
    skipping.encode(BACKBONE, tmp_path / "out", device=CPU)
    whole = content(tmp_path / "out")
    assert "shard-00002.safetensors" not in whole
    (tmp_path / "out" / "shard-00000.safetensors").unlink()
    read: list[str] = []
    real = VideoFolder.read
    monkeypatch.setattr(VideoFolder, "read", lambda self, clip, at: read.append(clip.key) or real(self, clip, at))
    skipping.encode(BACKBONE, tmp_path / "out", device=CPU)
    assert read == ["0.mp4", "1.mp4"]
    assert content(tmp_path / "out") == whole


def test_of_clips_that_are_all_bad_nothing_is_made(folder: VideoFolder, tmp_path: Path) -> None:
    for name in range(5):
        damaged(Path(folder.path) / f"{name}.mp4")
    with pytest.raises(DataError, match="none of the 5 can be made"):
        evolve(folder, bad="skip").encode(BACKBONE, tmp_path / "out", device=CPU)


def test_the_command_line_and_bad_clips(folder: VideoFolder, tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "out")
    line = ["data", "encode", folder.path, "--backbone", "tiny_wan", "--out", out, "--shard-size", "2"]
    assert main(line) == 2  # 81 frames, by default
    said = capsys.readouterr().err
    assert "5 of 5 clips" in said and "--size" in said and "file/s" not in said
    assert not Path(out).exists()
    damaged(Path(folder.path) / "0.mp4")
    line += ["--size", "9x32x32"]
    assert main(line) == 1
    assert "1 of 5 clips cannot be encoded; the others are" in capsys.readouterr().err
    assert main([*line, "--skip-bad"]) == 0
    said = capsys.readouterr().out
    assert "4 samples" in said and "1 clip left out:\n" in said


def test_a_size_that_the_model_has_not_leaves_no_trace(folder: VideoFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="31"):
        evolve(folder, height=31).encode(BACKBONE, tmp_path / "out", device=CPU)
    assert not (tmp_path / "out").exists()


def test_a_directory_of_other_things_is_refused(folder: VideoFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"clips holds other things, such as '0\.mp4'"):
        folder.encode(BACKBONE, Path(folder.path), device=CPU)
    with pytest.raises(DataError, match="is a file: must be a directory"):
        folder.encode(BACKBONE, Path(folder.path) / "0.mp4", device=CPU)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "encode.log").write_text("what the command says may go there")
    assert folder.encode(BACKBONE, tmp_path / "out", device=CPU) is not None


def test_compressed_tars_are_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"")
    for source in (tmp_path, tmp_path / "a.tar.gz"):
        with pytest.raises(DataError, match=r"a\.tar\.gz: compressed tars cannot be read; .*`gunzip a\.tar\.gz`"):
            VideoFolder(source).clips()
