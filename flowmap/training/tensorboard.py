"""Records for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """`tensorboard --logdir RUN/tensorboard`: a curve a stage and value, over the iterations of the stage.

    Needs the extra `flowmap-distill[tensorboard]`.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(f"{error}; pip install 'flowmap-distill[tensorboard]'") from error

        self.writer: Any = SummaryWriter(run / "tensorboard")

    def log(self, stage: int, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"stage {stage}/{name}", value, iteration)
        self.writer.flush()

    def show(self, stage: int, iteration: int, pictures: Mapping[str, Path]) -> None:
        import numpy as np
        from PIL import Image

        for name, file in pictures.items():
            if file.suffix == ".txt":
                self.writer.add_text(f"stage {stage}/{name}", file.read_text().replace("\n", "  \n"), iteration)
            if file.suffix != ".png":  # a video there is a GIF made again
                continue
            with Image.open(file) as picture:
                pixels = np.array(picture.convert("RGB"))
            self.writer.add_image(f"stage {stage}/{name}", pixels, iteration, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
