"""The picture as a player shows it: turned, mirrored, of square pixels, scaled and cut to the size that is asked for.

A stored picture [h, w] has an orientation, the quarter turns and mirrors that its container or EXIF says, and a sample
aspect ratio, the width of a pixel over its height. It is scaled once, as it is stored, and turned and cut afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional as F

UNIT = 1 << 16
"""One, in a display matrix."""


@frozen
class Orientation:
    """How a stored picture is turned: its axes are swapped first, where they are, then mirrored."""

    swapped: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of_matrix(cls, m: Sequence[int]) -> Orientation:
        """Of a display matrix, 9 numbers of 16.16 bits: a stored (x, y) is shown at (x, y) · [[m₀, m₁], [m₃, m₄]].

        A matrix that turns by anything but quarters is a `ValueError`; its scale and its shift are not looked at.
        """
        a, b, c, d = (m[k] / UNIT for k in (0, 1, 3, 4))
        along, across = max(abs(a), abs(d)), max(abs(b), abs(c))
        if max(along, across) == 0.0:  # no matrix: all of it is zero
            return cls()
        if min(along, across) > 0.01 * max(along, across):
            raise ValueError(f"it is to be shown turned, by [[{a:.3g}, {b:.3g}], [{c:.3g}, {d:.3g}]]")
        return cls(False, a < 0, d < 0) if along > across else cls(True, c < 0, b < 0)

    @classmethod
    def of_exif(cls, tag: int) -> Orientation:
        """Of EXIF's tag 274; what it does not define is upright."""
        known = {
            2: cls(False, True, False),
            3: cls(False, True, True),
            4: cls(False, False, True),
            5: cls(True, False, False),
            6: cls(True, True, False),
            7: cls(True, True, True),
            8: cls(True, False, True),
        }
        return known.get(tag, cls())

    def swap(self, height: int, width: int) -> tuple[int, int]:
        return (width, height) if self.swapped else (height, width)

    def turn(self, pictures: Tensor) -> Tensor:
        """[n, h, w, 3], stored, as shown."""
        if self.swapped:
            pictures = pictures.transpose(1, 2)
        mirrored = [axis for axis, flag in ((1, self.mirror_y), (2, self.mirror_x)) if flag]
        return pictures.flip(mirrored) if mirrored else pictures


@frozen
class View:
    """From a stored picture to what is asked for. scaled: to which size, as it is stored. size: what is then cut out of
    the middle, as it is shown.
    """

    orientation: Orientation
    scaled: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(
        cls, stored: tuple[int, int], orientation: Orientation, ratio: Fraction, size: tuple[int, int] | None
    ) -> View:
        """ratio: of a pixel, width over height. size: (height, width), covered at the aspect ratio of what is shown;
        None is the size at which it is shown, its height kept as it is stored.
        """
        h, w = orientation.swap(*stored)
        square = (float(h), float(w))
        if ratio != 1:  # the stored width is stretched, which is shown as height where the axes are swapped
            square = (h * float(ratio), float(w)) if orientation.swapped else (float(h), w * float(ratio))
        if size is None:
            shown = max(1, round(square[0])), max(1, round(square[1]))
            return cls(orientation, orientation.swap(*shown), shown)
        scale = max(size[0] / square[0], size[1] / square[1])
        covers = max(size[0], round(square[0] * scale)), max(size[1], round(square[1] * scale))
        return cls(orientation, orientation.swap(*covers), size)

    @property
    def cut(self) -> float:
        """The share of the picture that is cut away."""
        return 1.0 - self.size[0] * self.size[1] / (self.scaled[0] * self.scaled[1])

    def scale(self, picture: Tensor) -> Tensor:
        """[h, w, 3] in uint8, of the size `scaled`; the same where it has that.

        Bicubic with antialiasing, in integers: within one level of float32's result, rounded, but where that overshoots
        between black and white: here each of the two passes is clamped.
        """
        if tuple(picture.shape[:2]) == self.scaled:
            return picture
        return F.interpolate(picture.permute(2, 0, 1)[None], self.scaled, mode="bicubic", antialias=True)[0].permute(
            1, 2, 0
        )

    def finish(self, pictures: Tensor) -> Tensor:
        """[n, h, w, 3], scaled, to [n, 3, H, W], turned and cut."""
        shown = self.orientation.turn(pictures)
        top, left = ((have - want) // 2 for have, want in zip(shown.shape[1:3], self.size, strict=True))
        return shown[:, top : top + self.size[0], left : left + self.size[1]].permute(0, 3, 1, 2)


def as_floats(pictures: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return pictures.to(torch.float32).div_(255)
