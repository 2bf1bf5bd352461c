"""The teacher's own samples as data, on the shipped pipeline."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_digits import TINY_WAN
from flowmap_wan21 import Wan21

from flowmap import Rng
from flowmap.cli import main
from flowmap.data import DataError, LatentFolder, LatentShards
from flowmap.data.synth import SYNTH, Synthesis, read_prompts
from flowmap.guidance import guided_euler_step
from flowmap.rollout import consistency_step, ode_step, sample
from tests.wan21.test_network import shake

from .made import content

TEACHER = Wan21(TINY_WAN, lora=None, text_tokens=12, shift=1.0)
CPU = torch.device("cpu")
PROMPTS = ("a three moving left slowly", "a seven moving up quickly, bouncing", "an eight moving down slowly")
ASKED = Synthesis(PROMPTS, (9, 32, 32), steps=3, guidance=3.0, each=2, shard=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("synth") / "data"
    ASKED.run(TEACHER, path, device=CPU)
    return path


def test_samples_are_the_teachers(whole: Path) -> None:
    """Guided Euler steps from the noise of each sample's own number."""
    data = LatentShards.open(whole)
    assert [*data.prompts()] == [prompt for prompt in PROMPTS for _ in range(2)]
    u = TEACHER.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    codec = TEACHER.codec(device=CPU, dtype=torch.float32)
    batch = data.batch([1, 4])
    torch.testing.assert_close(batch.cond, dict(codec.encode_prompts([PROMPTS[0], PROMPTS[2]])))
    torch.testing.assert_close(dict(batch.null), dict(codec.encode_prompts([""])))
    noise = torch.cat([Rng.seeded(0, SYNTH, k).noise_like(torch.zeros(1, 5, 4, 8, 8)) for k in (1, 4)])
    step = guided_euler_step(3.0, batch.null)
    torch.testing.assert_close(batch.x, sample(u, noise, batch.cond, 3, shift=1.0, step=step), rtol=1e-4, atol=1e-4)
    assert data.index.plan.encoders == TEACHER.encoders() and data.index.plan.made_from["synthesis"]["shift"] == 1.0


def student(folder: Path, **facts: Any) -> Wan21:
    """A student's directory as `distill` leaves it."""
    u = TEACHER.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    shake(u)
    TEACHER.save(u, folder)
    if facts:
        (folder / "flowmap.json").write_text(json.dumps({"shift": 1.0, **facts}))
    return Wan21(folder, lora=None, text_tokens=12)


@pytest.mark.parametrize(
    "sampler, step, guidance",
    [("flow_map", ode_step, 3.0), ("consistency", consistency_step, 3.0), ("flow_map", ode_step, 1.0)],
)
def test_a_student_is_sampled_as_itself(sampler: str, step: Any, guidance: float, tmp_path: Path) -> None:
    """Its own steps, four of them, and no guidance on top of what it has."""
    spec = student(tmp_path / "student", sampler=sampler, guidance=guidance)
    asked = Synthesis(PROMPTS, (9, 32, 32))
    data = asked.run(spec, tmp_path / "data", device=CPU)
    u, codec = (
        spec.load(Path(str(spec.path)), device=CPU, dtype=torch.float32),
        spec.codec(device=CPU, dtype=torch.float32),
    )
    noise = torch.cat([Rng.seeded(0, SYNTH, k).noise_like(torch.zeros(1, 5, 4, 8, 8)) for k in range(3)])
    right = sample(u, noise, codec.encode_prompts(PROMPTS), 4, shift=1.0, step=step)
    assert data is not None
    torch.testing.assert_close(data.batch(range(3)).x, right, rtol=1e-4, atol=1e-4)
    said = data.index.plan.made_from["synthesis"]
    assert (said["guidance"], said["steps"], said["shift"]) == (1.0, 4, 1.0)
    if guidance != 1.0:
        with pytest.raises(DataError, match=r"student has guidance 3 built in, and guidance 5 would come on top of it"):
            evolve(asked, guidance=5.0).run(spec, tmp_path / "twice", device=CPU)
        assert not (tmp_path / "twice").exists()


def test_of_a_student_that_somebody_published_no_guidance_is_known(tmp_path: Path, capsys: Any) -> None:
    student(tmp_path / "student")
    (tmp_path / "p.txt").write_text("a seven moving up\n")
    line = ["data", "synth", str(tmp_path / "student"), "--prompts", str(tmp_path / "p.txt"), "--size", "9x32x32"]
    capsys.readouterr()
    assert main([*line, "--out", str(tmp_path / "twice"), "--guidance", "5"]) == 2
    assert "student has guidance built in, and guidance 5 would come on top of it" in capsys.readouterr().err
    assert main([*line, "--out", str(tmp_path / "once"), "--steps", "1"]) == 0
    assert LatentShards.open(tmp_path / "once").index.plan.made_from["synthesis"]["guidance"] == 1.0


def test_parts_and_interruptions_give_the_same_bytes(whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from flowmap.data.synth import Generator

    for i in (2, 1):
        ASKED.run(TEACHER, tmp_path / "parts", device=CPU, part=(i, 2))
    assert content(tmp_path / "parts") == content(whole)
    real, calls = Generator.samples, [0]

    def interrupted(self: Generator, first: int, last: int) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return real(self, first, last)

    monkeypatch.setattr(Generator, "samples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ASKED.run(TEACHER, tmp_path / "stopped", device=CPU)
    ASKED.run(TEACHER, tmp_path / "stopped", device=CPU)
    assert calls == [4] and content(tmp_path / "stopped") == content(whole)


def test_a_sample_is_the_same_in_another_sharding(whole: Path, tmp_path: Path) -> None:
    """To rounding: other samples in a call are other sums inside it."""
    other = evolve(ASKED, shard=5).run(TEACHER, tmp_path, device=CPU)
    assert other is not None
    torch.testing.assert_close(
        other.batch(range(6)).x, LatentShards.open(whole).batch(range(6)).x, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "change, said",
    [
        ({"steps": 4}, r"synthesis\.steps = 3, now 4"),
        ({"guidance": 2.0}, r"synthesis\.guidance = 3\.0, now 2\.0"),
        ({"shift": 5.0}, r"synthesis\.shift = 1\.0, now 5\.0"),
        ({"prompts": PROMPTS[:2]}, "count = 6, now 4"),
    ],
)
def test_other_settings_do_not_go_on(whole: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        evolve(ASKED, **change).run(TEACHER, whole, device=CPU)


def test_a_recipe_takes_them(whole: Path) -> None:
    data = LatentFolder(whole, workers=0).load(TEACHER, None, device=CPU)
    assert len(data) == 6
    other = evolve(TEACHER, path=None)  # of which nothing is known, so nothing is compared
    assert len(LatentFolder(whole, workers=0).load(other, None, device=CPU)) == 6


def test_a_size_is_of_a_video_or_of_a_latent() -> None:
    for shape in ((9, 32), (9, 32, 0), ()):
        with pytest.raises(ValueError, match=r"Synthesis\.shape = .*: must be \(frames, height, width\) or a latent's"):
            Synthesis(PROMPTS, shape)


def test_half_precision_keeps_texts_as_the_encoder_made_them(tmp_path: Path) -> None:
    data = ASKED.run(TEACHER, tmp_path, device=CPU, dtype=torch.bfloat16)
    assert data is not None and data.index.cond["text"].dtype == "bfloat16" and data.index.latent.dtype == "float32"
    codec = TEACHER.codec(device=CPU, dtype=torch.bfloat16)
    texts = codec.encode_prompts([PROMPTS[1]])["text"]
    found = data.batch([2]).cond["text"]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), texts, rtol=0, atol=0)


def test_prompts_are_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# what a file begins with\none\n\n  two \r\nthree")
    assert read_prompts(tmp_path / "p.txt") == ("one", "two", "three")
    (tmp_path / "p.txt").write_text("\n\n")
    with pytest.raises(DataError, match="has no prompts: must have one a line"):
        read_prompts(tmp_path / "p.txt")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is no text in UTF-8"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(DataError, match="No such file"):
        read_prompts(tmp_path / "q.txt")


# ---------------------------------------------------------------- the command line
def command(out: Path, prompts: Path, *more: str) -> list[str]:
    asked = ["--prompts", str(prompts), "--out", str(out), "--steps", "3", "--each", "2", "--shard-size", "2"]
    return ["data", "synth", "tiny_wan", *asked, *more]


def test_kill_9_on_the_command_line(whole: Path, tmp_path: Path, capsys: Any) -> None:
    """A recipe's teacher, guidance, shift and latent size; killed after its second file."""
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    line = command(tmp_path / "out", tmp_path / "p.txt")
    process = subprocess.Popen([sys.executable, "-m", "flowmap", *line], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "shard-00000.safetensors").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert main(line) == 0
    assert "6 samples" in capsys.readouterr().out
    ours, found = LatentShards.open(whole), LatentShards.open(tmp_path / "out")
    assert [s.sha256 for s in found.index.shards] == [s.sha256 for s in ours.index.shards]
    assert main(["data", "check", str(tmp_path / "out"), "--backbone", str(TINY_WAN)]) == 0
    assert main([*line, "--shard", "2/3"]) == 0  # nothing is left to do


@pytest.mark.parametrize(
    "more, said",
    [
        (["--shard", "3/2"], "must be I/N with 1 <= I <= N, such as 1/4"),
        (["--guidance", "0.5"], "0.5: must be a number, at least 1"),
        (["--guidance", "nan"], "nan: must be a number, at least 1"),
        (["--promts", "x"], "data synth: there is no option '--promts': must be one of"),
        (["--prompts", "nowhere.txt"], "prompts 'nowhere.txt': there is no such file"),
        (["--size", "9x33x32"], "9x33x32 is no size of this model: frames must be 1 more than a multiple of 2"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, more: list[str], said: str, capsys: Any) -> None:
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    assert main(command(tmp_path / "out", tmp_path / "p.txt", *more)) == 2
    captured = capsys.readouterr()
    *before, sentence = captured.err.splitlines()
    assert said in sentence and all(re.match(r"flowmap: 0%, .* \| loading the teacher$", line) for line in before)
