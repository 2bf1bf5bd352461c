"""A stream is the video that `sample` makes from the same seed, chunk by chunk; what cannot be done is said at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import imageio.v3 as iio
import pytest
import torch
from attrs import evolve, frozen
from torch import Tensor

from flowmap import FlowMapSpec, Rng, hookimpl, sample, stream
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.cli import main
from flowmap.evaluation import sampling
from flowmap.plugins import manager
from tests.toys import CHANNELS, Toy, ToyFlowMap

F = 5  # latent frames, in chunks of 1, 2 and 2: 1, 4 and 4 video frames
LONGEST = 9


class Chunked(ToyFlowMap):
    """The first frame is a chunk of its own, as images are to video models."""

    calls: ClassVar[list[int]] = []

    def chunks(self, frames: int) -> tuple[int, ...]:
        if frames > LONGEST:
            raise ValueError(f"{frames} latent frames: this network has positions for {LONGEST}")
        return (1, *(2 for _ in range(frames // 2))) if self.spec.causal else (frames,)

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.calls.append(z.shape[1])
        return super().forward(z, t, r, cond, cache)


class Halves:
    """A codec in time and space: a latent frame after the first is two frames, and shows through in the next one."""

    def encode_prompts(self, prompts: Sequence[str]) -> Cond:
        return {"text": torch.tensor([[float(len(p)), 1.0, 0.0] for p in prompts]) / 10}

    def encode(self, videos: Tensor) -> Latent:
        small = torch.nn.functional.avg_pool2d(videos[:, ::2, :CHANNELS].flatten(0, 1), 2)
        return small.unflatten(0, (len(videos), -1)) * 4 - 2

    def decode(self, x: Latent) -> Tensor:
        return next(self.decode_chunks([x]))

    def decode_chunks(self, chunks: Iterable[Latent]) -> Iterator[Tensor]:
        before: Latent | None = None
        for x in chunks:
            first = x[:, :1] * 0 if before is None else before
            y = (x + 0.5 * torch.cat([first, x[:, :-1]], 1)).sigmoid()
            y = torch.cat([y, y[:, :, :1]], 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
            frames = torch.stack([y, 0.5 * y], 2).flatten(1, 2)
            yield frames[:, 1:] if before is None else frames
            before = x[:, -1:]

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        if frames % 2 == 0 or height % 2 or width % 2:
            raise ValueError(f"{frames}x{height}x{width} is no size of this model: frames odd, height and width even")
        return frames // 2 + 1, CHANNELS, height // 2, width // 2


@frozen
class Clips(Toy):
    shift: float = 3.0

    def codec(self, *, device: torch.device, dtype: torch.dtype) -> Halves:
        return Halves()


CHUNKED = Clips(causal=True, network=Chunked)


@frozen
class Plugin:
    """Answers for every directory."""

    spec: FlowMapSpec

    @hookimpl
    def flowmap_resolve_backbone(self, name: str) -> FlowMapSpec:
        return self.spec


def saved(path: Path, spec: Clips = CHUNKED) -> Path:
    u = spec.build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    with torch.no_grad():
        for i, p in enumerate(u.parameters()):
            p.add_(0.1 * Rng.seeded(i).noise_like(p))
    spec.save(u, path)
    (path / "flowmap.json").write_text(json.dumps({"latent_shape": [F, CHANNELS, 2, 2]}))
    return path


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return saved(tmp_path / "student")


def streamed(student: Path, spec: FlowMapSpec = CHUNKED, **options: Any) -> Iterator[Tensor]:
    Chunked.calls.clear()
    return stream(student, "a seven", pm=manager(Plugin(spec), entry_points=False), **options)


def sampled(student: Path, latents: tuple[int, ...] = (F, CHANNELS, 2, 2), seed: int = 0, **options: Any) -> Tensor:
    u = CHUNKED.load(student, device=torch.device("cpu"), dtype=torch.float32)
    noise = Rng.seeded(seed).noise_like(torch.zeros(1, *latents))
    x = sample(u, noise, Halves().encode_prompts(["a seven"]), shift=CHUNKED.shift, **options)
    return Halves().decode(x)[0]


def clip(frames: int, height: int = 4, width: int = 4) -> Tensor:
    return Rng.seeded(9).uniform(frames * 3 * height * width, torch.zeros(())).reshape(frames, 3, height, width)


@pytest.mark.parametrize("seed, steps", [(0, 4), (3, 1)])
def test_a_stream_is_the_video_that_is_sampled_from_the_same_seed(student: Path, seed: int, steps: int) -> None:
    made = [*streamed(student, seed=seed, steps=steps)]
    assert [len(frames) for frames in made] == [1, 4, 4]
    assert not any(frames.requires_grad for frames in made)
    torch.testing.assert_close(torch.cat(made), sampled(student, seed=seed, steps=steps))


def test_a_chunk_is_made_when_its_frames_are_asked_for(student: Path) -> None:
    made = streamed(student, steps=2)
    assert Chunked.calls == []
    for calls in ([1, 1], [1, 1, 2, 2], [1, 1, 2, 2, 2, 2]):
        next(made)
        assert Chunked.calls == calls and torch.is_grad_enabled()
    assert next(made, None) is None


@pytest.mark.parametrize("frames, sizes", [(1, [1, 4, 4]), (5, [1, 4, 4])])
def test_a_stream_goes_on_from_an_image_or_a_video(student: Path, frames: int, sizes: list[int]) -> None:
    given = clip(frames)
    made = [*streamed(student, context=given)]
    context = Halves().encode(given[None])
    torch.testing.assert_close(torch.cat(made), sampled(student, context=context))
    torch.testing.assert_close(torch.cat(made)[:frames], Halves().decode(context)[0])
    assert [len(frames) for frames in made] == sizes


def test_frames_that_are_given_are_not_made(student: Path) -> None:
    made = streamed(student, context=clip(5), steps=1)
    next(made)
    next(made)
    assert Chunked.calls == []
    next(made)
    assert Chunked.calls == [2]


@pytest.mark.parametrize(
    "options, latents",
    [
        ({}, (F, CHANNELS, 2, 2)),
        ({"frames": 13}, (7, CHANNELS, 2, 2)),
        ({"size": (4, 8)}, (F, CHANNELS, 2, 4)),
        ({"frames": 5, "size": (8, 4)}, (3, CHANNELS, 4, 2)),
    ],
)
def test_length_and_size_are_those_of_training_unless_they_are_asked_for(
    student: Path, options: dict[str, Any], latents: tuple[int, ...]
) -> None:
    spec = evolve(CHUNKED, network=AnySize)
    made = torch.cat([*streamed(student, spec, **options)])
    frames, _, h, w = latents
    assert made.shape == (2 * frames - 1, 3, 2 * h, 2 * w)


class AnySize(Chunked):
    """The velocity of the picture's mean."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        mean = z.mean((3, 4), keepdim=True).expand(-1, -1, -1, 2, 2)
        return super().forward(mean, t, r, cond, cache).mean((3, 4), keepdim=True).expand(z.shape)

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        return super().extend(cache, x.mean((3, 4), keepdim=True).expand(-1, -1, -1, 2, 2), cond)


def test_a_network_that_makes_all_frames_at_once_streams_them_at_once(tmp_path: Path) -> None:
    spec = evolve(CHUNKED, causal=False)
    (made,) = streamed(saved(tmp_path / "student", spec), spec)
    assert len(made) == 2 * F - 1


def test_a_stream_can_be_in_bfloat16(student: Path) -> None:
    made = torch.cat([*streamed(student, dtype=torch.bfloat16)])
    torch.testing.assert_close(made, sampled(student), atol=0.05, rtol=0)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps = 0: must be at least 1"),
    ({"frames": 4}, "4x4x4 is no size of this model: frames odd"),
    ({"size": (5, 4)}, "1x5x4 is no size of this model"),
    ({"frames": 19}, "10 latent frames: this network has positions for 9"),
    ({"context": clip(1)[0]}, r"context is \(3, 4, 4\): must be \[n, 3, height, width\], n at least 1"),
    ({"context": clip(1)[:0]}, r"context is \(0, 3, 4, 4\): must be \[n, 3"),
    ({"context": clip(1)[:, :1]}, r"context is \(1, 1, 4, 4\): must be \[n, 3"),
    ({"context": (clip(1) * 255).byte()}, r"context is torch.uint8, from \d+ to \d+: must be floats in \[0, 1\]"),
    ({"context": 2 * clip(1) - 1}, r"context is torch.float32, from -.* must be floats in \[0, 1\]"),
    ({"context": clip(1) * torch.nan}, r"from nan to nan: must be floats in \[0, 1\]"),
    ({"context": clip(1, 8, 6)}, "context is 8x6, and the video 4x4: scale or cut it to that"),
    ({"context": clip(2)}, "2x4x4 is no size of this model: frames odd"),
    (
        {"context": clip(3)},
        "video frames of context = 3: must be 1 or 5; in latents, context frames = 2: must be 1 or 3, where a "
        "chunk ends and another is left to make",
    ),
    ({"context": clip(9)}, "video frames of context = 9: must be 1 or 5; in latents, context frames = 5"),
    ({"context": clip(21)}, "video frames of context = 21: must be 1 or 5; in latents, context frames = 11"),
]


@pytest.mark.parametrize("options, message", WRONG)
def test_what_cannot_be_done_is_said_at_once(student: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        streamed(student, **options)
    assert Chunked.calls == []


def test_a_network_that_makes_all_frames_at_once_goes_on_from_nothing(tmp_path: Path) -> None:
    spec = evolve(CHUNKED, causal=False)
    with pytest.raises(ValueError, match=r"makes all 5 latent frames at once and takes no context"):
        streamed(saved(tmp_path / "student", spec), spec, context=clip(1))


def test_a_student_that_is_not_there_or_does_not_say_its_size(student: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such directory"):
        streamed(tmp_path / "nowhere")
    (student / "flowmap.json").unlink()
    with pytest.raises(ValueError, match=r"has no flowmap\.json, which says a video's size: say frames, height and"):
        streamed(student)
    assert sum(len(frames) for frames in streamed(student, frames=5, size=(4, 4))) == 5


# ------------------------------------------------------------------ the same on the command line


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What `flowmap sample` writes."""
    written = list[Tensor]()
    monkeypatch.setattr("flowmap.plugins.backbone", lambda name, pm=None: CHUNKED)
    monkeypatch.setattr(sampling, "write_video", lambda frames, path, fps: written.append(frames))
    return written


def written_as(path: Path, frames: Tensor) -> Path:
    pictures = (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
    iio.imwrite(path, pictures[0] if path.suffix == ".png" else pictures)
    return path


@pytest.mark.parametrize("name, frames", [("image.png", 1), ("clip.gif", 5)])
def test_the_command_line_goes_on_from_a_file(
    student: Path, tmp_path: Path, shown: list[Tensor], name: str, frames: int
) -> None:
    grey = clip(frames)[:, :1].expand(-1, 3, -1, -1)  # a GIF has 256 colours
    file = written_as(tmp_path / name, (grey * 255).round() / 255)
    assert main(["sample", str(student), "--prompt", "a seven", "--context", str(file)]) == 0
    made = torch.cat([*streamed(student, context=(grey * 255).round() / 255)])
    torch.testing.assert_close(shown[0][..., :4, :4], made, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "size, message",
    [
        ((3, 4, 4), "video frames of context = 3: must be 1 or 5; in latents, context frames = 2: must be 1 or 3"),
        ((1, 8, 4), "context is 8x4, and the video 4x4: scale or cut it to that"),
    ],
)
def test_the_command_line_says_what_it_cannot_go_on_from(
    student: Path,
    tmp_path: Path,
    shown: list[Tensor],
    size: tuple[int, int, int],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = written_as(tmp_path / f"given.{'gif' if size[0] > 1 else 'png'}", clip(*size))
    assert main(["sample", str(student), "--prompt", "a seven", "--context", str(file)]) == 2
    assert message in capsys.readouterr().err
    assert not shown


def test_a_file_that_is_no_picture(
    student: Path, tmp_path: Path, shown: list[Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").write_text("hello")
    assert main(["sample", str(student), "--prompt", "a seven", "--context", str(tmp_path / "x.png")]) == 2
    assert "x.png is no video or image that can be read" in capsys.readouterr().err
