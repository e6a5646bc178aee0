"""Are a benchmark's files the published ones, and can every row be asked? MMBench's TSV files and RefCOCO's JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.data.check.cures import add_troubles
from llava.data.check.findings import Section
from llava.data.check.known import REFCOCO, REFCOCO_CURE, TSV
from llava.data.check.pictures import Wanted, look_at_all
from llava.data.check.sources import Benchmark
from llava.errors import LlavaError

if TYPE_CHECKING:
    from llava.data.check.training import MakeBar


def check_benchmark(source: Benchmark, processes: int, bar: MakeBar) -> list[Section]:
    """Check one benchmark file, or a folder of RefCOCO's."""
    if source.data.suffix == ".tsv":
        return [_tsv(source, bar)]
    files = sorted(source.data.rglob("*refcoco*.json")) if source.data.is_dir() else [source.data]
    sections = [_refcoco(source, file, processes, bar) for file in files]
    absent = sorted(REFCOCO.keys() - {file.stem for file in files}) if source.data.is_dir() else []
    for name in absent:
        sections[0].add("missing file", source.data / f"{name}.json", "not found", REFCOCO_CURE)
    return sections


def _tsv(source: Benchmark, bar: MakeBar) -> Section:
    from llava.evals.mmbench.rows import read

    section = Section(f"{source.title}: rows {source.data}")
    known = TSV.get(source.data.stem)
    cure = f"download {known.link(source.data.stem)}" if known else ""
    if not source.data.is_file():
        section.add("missing file", source.data, "not found", cure or "put it there")
        return section
    md5 = hashlib.md5(source.data.read_bytes(), usedforsecurity=False).hexdigest()
    section.numbers["md5"] = md5 + (", as published" if known and md5 == known.md5 else "")
    if known and md5 != known.md5:
        section.add("checksum", source.data, f"md5 is {md5}, published is {known.md5}", f"{cure} again")
    try:
        table = read(source.data)
    except LlavaError as error:
        section.add("wrong rows", source.data, str(error), cure)
        return section
    groups = table.groups()
    section.numbers |= {"rows": len(table.rows), "questions": len(groups), "pictures": len(table.pictures)}
    section.numbers["answers"] = "in the file" if table.has_answers else "with the benchmark's server alone"
    if known and known.rows and (len(table.rows), len(groups)) != (known.rows, known.questions):
        what = f"{len(table.rows):,} rows and {len(groups):,} questions, published are {known.rows:,} and "
        section.add("wrong rows", source.data, f"{what}{known.questions:,}", cure)
    with bar("pictures", len(table.pictures)) as progress:
        for key in table.pictures:
            try:
                table.open_picture(key)
            except LlavaError as error:
                section.add("unreadable picture", f"{source.data}: row {key}", str(error), cure)
            progress.advance(1)
    return section


def _refcoco(source: Benchmark, file: Path, processes: int, bar: MakeBar) -> Section:
    section = Section(f"{source.title}: expressions {file}")
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise ValueError("it holds no JSON list")
    except (OSError, ValueError) as error:
        section.add("missing file" if not file.exists() else "wrong rows", file, str(error), REFCOCO_CURE)
        return section
    section.numbers["rows"] = len(rows)
    known = REFCOCO.get(file.stem)
    if known is not None and len(rows) != known:
        section.add("wrong rows", file, f"{len(rows):,} rows, published are {known:,}", REFCOCO_CURE)
    good = []
    for number, row in enumerate(rows):
        wrong = _wrong_with(row)
        if wrong:
            section.add("wrong rows", f"{file}: row {number}", wrong, REFCOCO_CURE)
        else:
            good.append(row)
    if source.images is None:
        section.add("pictures", file, "were not opened", "name their folder: --images FOLDER", grave=False)
    else:
        _pictures_of(good, source.images, section, processes, bar)
    return section


def _wrong_with(row: Any) -> str:
    """What is wrong with an annotation; empty: nothing.

    It has ``img_id``, or ``image`` with a path; ``sents``; ``bbox`` as [x, y, width, height], ``height`` and ``width``
    in pixels.
    """
    if not isinstance(row, dict):
        return "is no JSON object"
    picture = "image" if "image" in row else "img_id"
    absent = [key for key in (picture, "sents", "bbox", "height", "width") if key not in row]
    if absent:
        return f"lacks {', '.join(absent)}"
    box, width, height = row["bbox"], row["width"], row["height"]
    numbers = [*box, width, height] if isinstance(box, list) and len(box) == 4 else []
    if not numbers or any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        return f"bbox {box!r} in {width!r} x {height!r} is not four numbers in two"
    x, y, wide, high = box
    # Annotated corners were rounded: half a pixel outside is common and harmless.
    if min(x, y) < -1 or min(wide, high) <= 0 or x + wide > width + 1 or y + high > height + 1:
        return f"bbox {box} leaves the picture of {width} x {height}"
    return "" if row["sents"] else "has no expression"


def _pictures_of(rows: list[Any], images: Path, section: Section, processes: int, bar: MakeBar) -> None:
    wanted = sorted(_wanted(rows, images))
    with bar("pictures", len(wanted)) as progress:
        looked = look_at_all(str(images), wanted, processes, progress.advance)
    add_troubles(section, images, looked, 0)
    section.numbers |= {"pictures": len(wanted), "opened": looked.opened, "pictures a minute": progress.per_minute}


def _wanted(rows: Iterable[Any], images: Path) -> set[Wanted]:
    named = ((row["image"] if "image" in row else picture_name(str(row["img_id"]), images), row) for row in rows)
    return {(str(name), (int(row["width"]), int(row["height"]))) for name, row in named}


def picture_name(img_id: str, images: Path) -> str:
    """Path below the image folder of an annotation's picture: COCO's number with its 12 digits, of 2017 or 2014.

    Args:
        img_id: such as ``COCO_train2014_000000581857_16``, or the number alone.
    """
    parts = img_id.split("_")
    number = parts[-2] if len(parts) > 2 and parts[-2].isdigit() else parts[-1]
    number = number.zfill(12)
    names = [f"{folder}{start}{number}.jpg" for folder in _FOLDERS for start in ("", "COCO_train2014_")]
    return next((name for name in names if (images / name).is_file()), names[0])


_FOLDERS = ("", "coco/train2017/", "train2017/", "coco/train2014/", "train2014/")
