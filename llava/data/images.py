"""Pictures: opened, made square and resized to what the tower takes, or named as bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llava.data.collate import BadPicture

Pixels = NDArray[np.uint8]
"""(3, S, S). They are scaled and normalised on the device, where it costs nothing."""
CACHE_BYTES = 512 * 2**20
"""Prepared pictures are kept in memory where all of them take no more than this, per process."""


class Pictures:
    """Reads pictures below a folder.

    Args:
        folder: where the records' paths start.
        processor: the tower's image processor, on PIL.
        square: how pictures become square.
        keep: keep prepared pictures in memory (for data that fits).
    """

    def __init__(self, folder: str | Path, processor: Any, square: Literal["crop", "pad"], keep: bool = False) -> None:
        self._folder = Path(folder)
        self._processor = processor
        self._square = square
        self._kept: dict[str, Pixels] | None = {} if keep else None

    def read(self, name: str) -> Pixels | BadPicture:
        """One prepared picture, or what is wrong with it."""
        if self._kept is not None and name in self._kept:
            return self._kept[name]
        path = self._folder / name
        try:
            with Image.open(path) as image:
                pixels = prepare(image.convert("RGB"), self._processor, self._square)
        # Broken files make PIL's decoders raise nearly anything (OSError, SyntaxError, struct.error, ...).
        except Exception as error:
            return BadPicture(str(path), f"{type(error).__name__}: {error}")
        if self._kept is not None:
            self._kept[name] = pixels
        return pixels


def prepare(image: Image.Image, processor: Any, square: Literal["crop", "pad"]) -> Pixels:
    """An RGB picture as the tower takes it, before scaling and normalising: (3, S, S)."""
    if square == "pad":
        image = pad(image, tuple(int(255 * value) for value in processor.image_mean))
    prepared = processor(images=image, do_rescale=False, do_normalize=False, return_tensors="np")
    return np.asarray(prepared["pixel_values"][0]).astype(np.uint8)


def pad(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Centre a picture on a square of one colour."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    background = Image.new("RGB", (side, side), colour)
    background.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return background


def fits_in_memory(pictures: int, side: int) -> bool:
    """Whether so many prepared pictures may be kept."""
    return pictures * 3 * side * side <= CACHE_BYTES
