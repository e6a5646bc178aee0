"""Which rows does an evaluation file hold, and can every one of them be asked?

A JSON list of objects with ``sents`` (the phrase), ``bbox`` ([x, y, width, height] in pixels), ``height``, ``width``
and the picture: ``img_id`` such as ``COCO_train2014_000000581857_16``, of whose parts the last but one counts, as in
MiniGPT-4's ``eval_data``; or ``image``, a path below the image folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from llava.errors import ConfigError, DataError
from llava.evals.problems import cannot_be_evaluated
from llava.evals.refcoco.boxes import Box, normalised

if TYPE_CHECKING:
    from PIL import Image

LAYOUTS = (
    "coco/train2017/{}.jpg",
    "train2017/{}.jpg",
    "{}.jpg",
    "coco/train2014/COCO_train2014_{}.jpg",
    "train2014/COCO_train2014_{}.jpg",
    "COCO_train2014_{}.jpg",
)
"""Where COCO's pictures may lie below the image folder, by their twelve digits; first as in LLaVA's 665K mix."""
_IMG_ID = re.compile(r".*_(\d{12})_[^_]*")


@dataclass(frozen=True)
class Row:
    """One phrase for one object."""

    index: int
    """Place in the file, from 0."""
    phrase: str
    box: Box
    """The true one."""
    picture: str
    """Path below the image folder."""
    group: int = 0
    """All prompts begin alike."""


@dataclass(frozen=True)
class Table:
    """A checked evaluation file."""

    path: str
    md5: str
    rows: list[Row]
    images: Path

    def open_picture(self, key: str) -> Image.Image:
        """Decode one picture to RGB.

        Raises:
            DataError: the picture is cut off or damaged.
        """
        from PIL import Image

        try:
            return Image.open(self.images / key).convert("RGB")
        except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
            raise DataError(f"{self.images / key} cannot be decoded: {error}") from None


def read(path: str | Path, images: str | Path | None) -> Table:
    """Read and check an evaluation file, and look for every picture.

    Raises:
        ConfigError: no image folder is named, or it is not there.
        DataError: with every problem and the record's number, from 0.
    """
    if images is None or not Path(images).is_dir():
        raise ConfigError(
            f"image folder not found: {images}", "Name the folder with COCO's pictures: eval.images, or --images."
        )
    try:
        data = Path(path).read_bytes()
        records = json.loads(data)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", "eval.data is a JSON list of referring phrases") from None
    if not isinstance(records, list) or not records:
        raise DataError(f"{path} holds no JSON list of records")
    problems: list[tuple[int, str]] = []
    layout = _layout(records, Path(images))
    rows = [row for number, record in enumerate(records) if (row := _row(number, record, layout, problems))]
    lost = {name for name in {row.picture for row in rows} if not (Path(images) / name).is_file()}
    problems += [(row.index, f"no picture {row.picture}") for row in rows if row.picture in lost]
    if problems:
        hint = f"{len(lost)} pictures are not below {images}: eval.images, or --images." if lost else ""
        raise cannot_be_evaluated(str(path), problems, "record", hint)
    return Table(str(path), hashlib.md5(data, usedforsecurity=False).hexdigest(), rows, Path(images))


def _layout(records: list[Any], images: Path) -> str:
    """The layout that has the first picture; the usual one where none has."""
    names = (_digits(record["img_id"]) for record in records if isinstance(record, dict) and "img_id" in record)
    first = next((name for name in names if name), None)
    there = (layout for layout in LAYOUTS if first and (images / layout.format(first)).is_file())
    return next(there, LAYOUTS[0])


def _digits(img_id: object) -> str | None:
    found = _IMG_ID.fullmatch(img_id) if isinstance(img_id, str) else None
    return found.group(1) if found else None


def _row(number: int, record: Any, layout: str, problems: list[tuple[int, str]]) -> Row | None:
    wrong = list(_wrong(record)) if isinstance(record, dict) else ["it is no JSON object"]
    problems += [(number, text) for text in wrong]
    if wrong:
        return None
    picture = record["image"] if "image" in record else layout.format(_digits(record["img_id"]))
    box = normalised(record["bbox"], record["height"], record["width"])
    return Row(number, record["sents"], box, picture)


def _wrong(record: dict[str, Any]) -> Iterator[str]:
    """What makes a record unusable, key by key."""
    phrase, box, sides = record.get("sents"), record.get("bbox"), (record.get("height"), record.get("width"))
    if not isinstance(phrase, str) or not phrase.strip():
        yield f"sents {phrase!r} is no phrase"
    if "image" in record:
        if not isinstance(record["image"], str):
            yield f"image {record['image']!r} is no path"
    elif _digits(record.get("img_id")) is None:
        yield f"img_id {record.get('img_id')!r} names no picture (as COCO_train2014_000000581857_16 does)"
    if not all(_is_number(side) and side > 0 for side in sides):
        yield f"height and width are {sides[0]!r} and {sides[1]!r}"
    if not _is_box(box):
        yield f"bbox {box!r} is not [x, y, width, height]"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        return False
    return all(part >= 0 for part in value[:2]) and all(part > 0 for part in value[2:])
