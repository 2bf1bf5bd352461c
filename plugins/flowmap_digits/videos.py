"""Moving handwritten digits: a real data set small enough to distil on a laptop.

A clip shows one of scikit-learn's 8×8 handwritten digits (``load_digits``), enlarged to 16×16, that moves over a
32×32 canvas for nine frames. Its prompt says everything that a measurement can check: "a three moving left slowly",
"a seven moving up quickly, bouncing". A ``Style`` draws the same prompts otherwise: data of one's own, for a network
that was trained on the plain ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise, product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from attrs import field, frozen
from torch import Tensor

from flowmap import validators

CANVAS = 32
FRAMES = 9
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": 1, "quickly": 2}
HELD_OUT_SHARE = 0.2
INK = 0.05
"""A row or column of a glyph that never exceeds this grey value counts as empty."""

Split = Literal["train", "held_out", "all"]
Images = Literal["train", "held_out"]


@frozen
class Prompt:
    """What a clip shows: a digit, the way it goes, how fast, and whether it meets the border and turns round."""

    digit: int = field(validator=validators.in_(range(10)))
    direction: str = field(validator=validators.in_(tuple(DIRECTIONS)))
    speed: str = field(validator=validators.in_(tuple(SPEEDS)))
    bouncing: bool = field(default=False, validator=validators.instance_of(bool))

    @property
    def text(self) -> str:
        """The sentence a model is given, such as "a three moving left slowly, bouncing"."""
        tail = ", bouncing" if self.bouncing else ""
        article = "an" if self.digit == 8 else "a"
        return f"{article} {DIGITS[self.digit]} moving {self.direction} {self.speed}{tail}"

    @property
    def velocity(self) -> tuple[int, int]:
        """(x, y) in pixels a frame; y grows downwards. A bouncing clip starts with it."""
        x, y = DIRECTIONS[self.direction]
        return x * SPEEDS[self.speed], y * SPEEDS[self.speed]


@frozen
class Style:
    """How clips are drawn; what their prompts say stays the same.

    bold: strokes about a pixel wider on each side, with a soft edge. pace: of the speeds; a digit goes on by whole
    pixels, so at half the pace a slow one rests in every second frame.
    """

    bold: bool = field(default=False, validator=validators.instance_of(bool))
    pace: float = field(default=1.0, validator=[validators.gt(0.0), validators.le(1.0)])

    def travelled(self, prompt: Prompt, moves: int) -> int:
        """The pixels covered after so many moves."""
        return math.floor(self.pace * SPEEDS[prompt.speed] * moves)

    def speeds(self, prompt: Prompt, frames: int = FRAMES) -> list[int]:
        """The pixels of every move, F−1 of them."""
        covered = [self.travelled(prompt, moves) for moves in range(frames)]
        return [there - here for here, there in pairwise(covered)]


PLAIN = Style()
HEAVY = Style(bold=True, pace=0.5)


@cache
def all_prompts() -> tuple[Prompt, ...]:
    """The 160 prompts: ten digits × four directions × two speeds × bouncing or not."""
    return tuple(Prompt(*values) for values in product(range(10), DIRECTIONS, SPEEDS, (False, True)))


@cache
def held_out_prompts() -> tuple[Prompt, ...]:
    """Sixteen prompts for measurements only: every kind of motion once, spread over all ten digits."""
    motions = product(DIRECTIONS, SPEEDS, (False, True))
    return tuple(Prompt(7 * index % 10, *motion) for index, motion in enumerate(motions))


@cache
def train_prompts() -> tuple[Prompt, ...]:
    """The other 144 prompts. Each word, each motion and each digit is among them."""
    return tuple(prompt for prompt in all_prompts() if prompt not in held_out_prompts())


def prompts_with(texts: Sequence[str]) -> list[Prompt]:
    """The prompts that read so."""
    if unknown := sorted(set(texts) - _by_text().keys()):
        raise ValueError(f"{unknown[0]!r} is no prompt of moving digits; such as {next(iter(_by_text()))!r}")
    return [_by_text()[text] for text in texts]


@cache
def _by_text() -> dict[str, Prompt]:
    return {prompt.text: prompt for prompt in all_prompts()}


def prompts_of(split: Split) -> tuple[Prompt, ...]:
    """The prompts of a split, in a fixed order."""
    if split not in ("train", "held_out", "all"):
        raise ValueError(f"split is {split!r}; it must be 'train', 'held_out' or 'all'")
    return {"train": train_prompts, "held_out": held_out_prompts, "all": all_prompts}[split]()


def render(
    prompt: Prompt,
    rng: np.random.Generator,
    *,
    images: Images = "train",
    frames: int = FRAMES,
    style: Style = PLAIN,
) -> Tensor:
    """One clip of a prompt, [F, 3, 32, 32] in [0, 1]; the handwriting and the start are drawn with ``rng``."""
    return render_all([prompt], rng, images=images, frames=frames, style=style)[0]


def clips(
    count: int,
    seed: int,
    split: Split = "train",
    *,
    images: Images = "train",
    frames: int = FRAMES,
    style: Style = PLAIN,
) -> tuple[Tensor, list[Prompt]]:
    """``count`` clips of prompts drawn from a split.

    Returns ([N, F, 3, 32, 32] float32 in [0, 1], their prompts). The three colours share one memory: clone to write.
    """
    rng = np.random.default_rng(seed)
    choices = prompts_of(split)
    prompts = [choices[index] for index in rng.integers(len(choices), size=count)]
    return render_all(prompts, rng, images=images, frames=frames, style=style), prompts


def render_all(
    prompts: Sequence[Prompt],
    rng: np.random.Generator,
    *,
    images: Images = "train",
    frames: int = FRAMES,
    style: Style = PLAIN,
) -> Tensor:
    """A clip for each prompt, [N, F, 3, 32, 32] in [0, 1]."""
    if frames < 7:
        raise ValueError(f"frames is {frames}; a bounce needs at least 7")
    glyphs = _draw_glyphs(prompts, rng, images)
    if style.bold:
        glyphs = _embolden(glyphs)
    first, last = _room(glyphs)
    starts = _starts(prompts, first, last, rng, frames, style)
    return _paint(glyphs, _paths(prompts, starts, first, last, frames, style))


@cache
def _glyphs(images: Images) -> tuple[Tensor, ...]:
    """For each digit its handwritten examples, [n, 16, 16] in [0, 1]."""
    from sklearn.datasets import load_digits

    if images not in ("train", "held_out"):
        raise ValueError(f"images is {images!r}; it must be 'train' or 'held_out'")
    data, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    cut = int(len(labels) * HELD_OUT_SHARE)
    chosen = order[:cut] if images == "held_out" else order[cut:]
    large = _enlarge(torch.from_numpy(data[chosen].reshape(-1, 8, 8)).float() / 16)
    return tuple(large[torch.from_numpy(labels[chosen] == digit)] for digit in range(10))


def _enlarge(small: Tensor) -> Tensor:
    """[n, 8, 8] to [n, 16, 16]: bicubic, then a contrast curve that keeps the strokes crisp."""
    large = nnf.interpolate(small[:, None], scale_factor=2, mode="bicubic", align_corners=False)[:, 0]
    ramp = ((large - 0.15) / 0.6).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _draw_glyphs(prompts: Sequence[Prompt], rng: np.random.Generator, images: Images) -> Tensor:
    """One example of each prompt's digit, [N, 16, 16]."""
    examples = _glyphs(images)
    return torch.stack([examples[p.digit][int(rng.integers(len(examples[p.digit])))] for p in prompts])


def _embolden(glyphs: Tensor) -> Tensor:
    """[N, G, G] to [N, G+2, G+2]: twice the 3×3 average, cut at white, a dilation that is soft and keeps loops open."""
    return (2 * nnf.avg_pool2d(nnf.pad(glyphs, (2, 2, 2, 2))[:, None], 3, stride=1)[:, 0]).clamp(max=1)


def _room(glyphs: Tensor) -> tuple[Tensor, Tensor]:
    """The first and last corner positions (x, y), each [N, 2], that keep a glyph's ink inside the canvas."""
    bounds = []
    for axis in (1, 2):  # the maximum over rows leaves columns, hence x
        inked = (glyphs.amax(dim=axis) > INK).int()
        before, after = inked.argmax(dim=1), inked.flip(1).argmax(dim=1)
        bounds.append((-before, CANVAS - glyphs.shape[1] + after))
    return torch.stack([low for low, _ in bounds], 1), torch.stack([high for _, high in bounds], 1)


def _starts(
    prompts: Sequence[Prompt], first: Tensor, last: Tensor, rng: np.random.Generator, frames: int, style: Style
) -> Tensor:
    """The corner positions in the first frame, [N, 2]; a bouncing digit meets the border after 3 to F−4 moves."""
    starts = torch.empty_like(first)
    for index, prompt in enumerate(prompts):
        moves = int(rng.integers(3, frames - 3)) if prompt.bouncing else frames - 1
        for axis, way in enumerate(DIRECTIONS[prompt.direction]):
            low, high = int(first[index, axis]), int(last[index, axis])
            wall, other = (high, low) if way > 0 else (low, high)
            farthest = wall - way * style.travelled(prompt, moves)
            fixed = way != 0 and prompt.bouncing
            reach = sorted((other, farthest))
            starts[index, axis] = farthest if fixed else int(rng.integers(reach[0], reach[1] + 1))
    return starts


def _paths(prompts: Sequence[Prompt], starts: Tensor, first: Tensor, last: Tensor, frames: int, style: Style) -> Tensor:
    """The corner positions in every frame, [N, F, 2]: constant speed, reflected at the border."""
    ways = torch.tensor([DIRECTIONS[prompt.direction] for prompt in prompts])
    covered = torch.tensor([[style.travelled(prompt, moves) for moves in range(frames)] for prompt in prompts])
    free = starts[:, None] + ways[:, None] * covered[..., None]
    room = (last - first)[:, None]
    phase = (free - first[:, None]).remainder(2 * room)
    return first[:, None] + torch.minimum(phase, 2 * room - phase)


def _paint(glyphs: Tensor, paths: Tensor) -> Tensor:
    """Glyphs [N, G, G] at positions [N, F, 2] on black, [N, F, 3, 32, 32]."""
    framed = nnf.pad(glyphs, (1, 1, 1, 1))
    pixels = torch.arange(CANVAS) - paths[..., None] + 1
    columns, rows = pixels.clamp(0, glyphs.shape[1] + 1).unbind(dim=2)
    sample = torch.arange(len(glyphs))[:, None, None, None]
    grey = framed[sample, rows[..., :, None], columns[..., None, :]]
    return grey[:, :, None].expand(-1, -1, 3, -1, -1)
