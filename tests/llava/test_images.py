"""Pictures: equal to what the processor and XTuner's padding give, and bad ones named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava.data.collate import BadPicture
from llava.data.images import CACHE_BYTES, Pictures, fits_in_memory, pad, prepare
from llava.model.vision import load_processor


@pytest.fixture(scope="module")
def processor(tiny_vision: Path) -> Any:
    return load_processor(str(tiny_vision))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (32, 32), (7, 100)])
def test_crop_is_the_processors_own(processor: Any, size: tuple[int, int]) -> None:
    image = noise(*size)
    expected = processor(images=image, do_normalize=False, return_tensors="np").pixel_values[0]
    assert np.array_equal(prepare(image, processor, "crop"), np.round(expected * 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(40, 30), (30, 41)])
def test_pad_centres_on_the_mean_colour(processor: Any, size: tuple[int, int]) -> None:
    image = noise(*size)
    squared = np.asarray(pad(image, (122, 116, 104)))
    side, left, top = max(size), (max(size) - size[0]) // 2, (max(size) - size[1]) // 2
    assert squared.shape == (side, side, 3)
    inside = (slice(top, top + size[1]), slice(left, left + size[0]))
    assert np.array_equal(squared[inside], np.asarray(image))
    outside = np.ones((side, side), bool)
    outside[inside] = False
    assert (squared[outside] == (122, 116, 104)).all()
    expected = processor(images=Image.fromarray(squared), do_normalize=False, return_tensors="np").pixel_values[0]
    assert [int(255 * m) for m in processor.image_mean] == [122, 116, 104]
    assert np.array_equal(prepare(image, processor, "pad"), np.round(expected * 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_every_kind_of_picture_becomes_rgb(processor: Any, tmp_path: Path, mode: str) -> None:
    kind = "I;16" if mode == "I;16" else mode
    image = Image.new("I;16", (20, 20)) if mode == "I;16" else noise(20, 20).convert(kind)
    image.save(tmp_path / "a.png")
    pixels = Pictures(tmp_path, processor, "pad").read("a.png")
    assert not isinstance(pixels, BadPicture)
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), np.uint8)


def test_bad_pictures_are_values_with_path_and_reason(processor: Any, tmp_path: Path) -> None:
    noise(200, 200).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    contents = {"torn.jpg": data[: len(data) // 2], "empty.jpg": b"", "text.jpg": b"not found", "folder.jpg": None}
    for name, content in contents.items():
        (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_bytes(content)
    pictures = Pictures(tmp_path, processor, "crop")
    for name in (*contents, "missing.jpg"):
        bad = pictures.read(name)
        assert isinstance(bad, BadPicture), name
        assert bad.path == str(tmp_path / name)
        assert bad.reason.partition(":")[0].endswith("Error")


def test_kept_pictures_are_read_once(processor: Any, tmp_path: Path) -> None:
    noise(20, 20).save(tmp_path / "a.png")
    kept, fresh = Pictures(tmp_path, processor, "pad", keep=True), Pictures(tmp_path, processor, "pad")
    first = kept.read("a.png")
    assert not isinstance(first, BadPicture)
    assert np.array_equal(first, fresh.read("a.png"))  # type: ignore[arg-type]
    (tmp_path / "a.png").unlink()
    assert kept.read("a.png") is first
    assert isinstance(fresh.read("a.png"), BadPicture)


def test_only_what_fits_is_kept() -> None:
    assert fits_in_memory(CACHE_BYTES // (3 * 32 * 32), 32)
    assert not fits_in_memory(558_128, 336)
