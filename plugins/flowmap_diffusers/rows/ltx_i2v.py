"""LTX-Video from an image, Lightricks: the weights of `ltx`; the first latent frame is given, at time 0."""

from __future__ import annotations

from attrs import evolve

from .. import images
from ..stand_in import ltx_vae
from .ltx import ROW as TEXT

ROW = evolve(
    TEXT, pipeline="LTXImageToVideoPipeline", also=("LTXPipeline",), example={**TEXT.example, "first": (1, 4, 4, 6)},
    images={"first": images.first}, held="first", parts=lambda: {"vae": ltx_vae()},
)  # fmt: skip
