"""How a scene becomes a picture, and a seed a data set: LLaVA JSON for both stages and a TSV in MMBench's columns.

Files below the folder of :func:`draw_data`::

    images/train/00000.jpg ...   pictures to learn from
    pretrain.json                captions, one turn each (stage 1)
    finetune.json                several questions about each of the same pictures, and rows without one (stage 2)
    dev.tsv                      questions about pictures of another seed, with circular copies

Only Pillow and the standard library are needed.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from llava.toy.words import (
    DESCRIBE,
    FAMILIES,
    LETTERS,
    Family,
    Question,
    Scene,
    ask,
    caption,
    draw_scene,
    picture_turns,
    text_turns,
)

Report = Callable[[int, int, dict[str, float]], None]
"""Told (step, total steps, metrics) now and then."""

SIDE = 64
"""Width and height of a picture in pixels."""
SMOOTH = 2
"""Pictures are drawn this many times larger and then reduced, which smooths their edges."""
QUALITY = 90
"""JPEG quality; the colour channels are kept at full resolution, because the shapes are small."""
COLUMNS = (
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
)
PASS = 1_000_000
"""MMBench's distance between the index of a question and that of its next circular copy."""

RGB = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 230),
    "yellow": (245, 220, 30),
    "purple": (140, 40, 170),
    "orange": (250, 140, 20),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "grey": (135, 135, 135),
    "brown": (105, 65, 35),
    "pink": (255, 185, 205),
}
OUTLINES = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0, -1), (0.95, 0.8), (-0.95, 0.8)),
    "diamond": ((0, -1.1), (0.7, 0), (0, 1.1), (-0.7, 0)),
    "cross": (
        (-0.3, -1),
        (0.3, -1),
        (0.3, -0.3),
        (1, -0.3),
        (1, 0.3),
        (0.3, 0.3),
        (0.3, 1),
        (-0.3, 1),
        (-0.3, 0.3),
        (-1, 0.3),
        (-1, -0.3),
        (-0.3, -0.3),
    ),
    "star": (
        (0, -1.05),
        (0.25, -0.35),
        (1, -0.3),
        (0.4, 0.15),
        (0.6, 0.9),
        (0, 0.5),
        (-0.6, 0.9),
        (-0.4, 0.15),
        (-1, -0.3),
        (-0.25, -0.35),
    ),
}
"""Corners of each shape, in radii from its middle; x to the right, y down."""
HALVES = {"left": (0, 0, 0.5, 1), "right": (0.5, 0, 1, 1), "top": (0, 0, 1, 0.5), "bottom": (0, 0.5, 1, 1)}
"""Left, upper, right, lower edge of each half, in sides of the picture."""
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def paint(scene: Scene, rng: random.Random, side: int = SIDE) -> Image.Image:
    """Draw a scene: RGB, ``side`` x ``side`` pixels. Size and exact places are drawn from ``rng``."""
    scale = side * SMOOTH
    image = Image.new("RGB", (scale, scale), RGB[scene.ground])
    pen = ImageDraw.Draw(image)
    radius = scale * rng.uniform(0.085, 0.115)
    for x, y in _spots(scene, rng):
        _shape(pen, scene, x * scale, y * scale, radius)
    _word(pen, scene, rng, scale)
    return image.resize((side, side), Image.Resampling.BOX)


def _spots(scene: Scene, rng: random.Random) -> list[tuple[float, float]]:
    """Middles of the shapes, in sides of the picture: random cells of a 2 x 2 grid in the scene's half, shaken."""
    left, upper, right, lower = HALVES[scene.place]
    cells = [(x, y) for y in (0.26, 0.74) for x in (0.26, 0.74)]
    shake = 0.015
    return [
        (
            left + x * (right - left) + rng.uniform(-shake, shake),
            upper + y * (lower - upper) + rng.uniform(-shake, shake),
        )
        for x, y in rng.sample(cells, scene.count)
    ]


def _shape(pen: ImageDraw.ImageDraw, scene: Scene, x: float, y: float, radius: float) -> None:
    fill = RGB[scene.colour]
    if scene.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        pen.polygon([(x + dx * radius, y + dy * radius) for dx, dy in OUTLINES[scene.shape]], fill=fill)


def _word(pen: ImageDraw.ImageDraw, scene: Scene, rng: random.Random, scale: int) -> None:
    left, upper, right, lower = HALVES[OPPOSITE[scene.place]]
    shake = 0.02
    middle = (
        ((left + right) / 2 + rng.uniform(-shake, shake)) * scale,
        ((upper + lower) / 2 + rng.uniform(-shake, shake)) * scale,
    )
    ink = RGB["black" if scene.ground in ("white", "grey", "pink") else "white"]
    pen.text(middle, scene.word, fill=ink, font=ImageFont.load_default(scale * 0.24), anchor="mm")


def jpeg(image: Image.Image) -> bytes:
    """The picture as a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def draw_data(
    folder: str | Path,
    seed: int,
    pictures: int = 4000,
    text_rows: int = 400,
    questions: int = 160,
    report: Report | None = None,
) -> None:
    """Draw the whole data set; the same arguments and the same Pillow give the same bytes.

    Args:
        folder: where the files go; see the module.
        seed: what everything is drawn from.
        pictures: pictures to learn from; each has a caption and a row of questions.
        text_rows: rows of stage 2 without a picture.
        questions: questions of the TSV, each about a picture of its own, each with its circular copies.
        report: told now and then how many pictures are drawn.
    """
    folder = Path(folder)
    (folder / "images" / "train").mkdir(parents=True, exist_ok=True)
    seen: set[Scene] = set()
    captions: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for number in range(pictures):
        rng = random.Random(f"{seed}/train/{number}")
        scene = draw_scene(rng)
        seen.add(scene)
        name = f"train/{number:05d}.jpg"
        _write(folder / "images" / name, jpeg(paint(scene, rng)))
        captions.append(_record(f"caption-{number}", name, [(DESCRIBE, caption(scene))]))
        turns.append(_record(f"picture-{number}", name, picture_turns(scene, rng)))
        if report is not None and (number + 1) % 250 == 0:
            report(number + 1, pictures, {})
    for number in range(text_rows):
        turns.append(_record(f"text-{number}", None, text_turns(random.Random(f"{seed}/text/{number}"))))
    _write(folder / "pretrain.json", _json(captions))
    _write(folder / "finetune.json", _json(turns))
    _write(folder / "dev.tsv", _tsv(dev_rows(seed, questions, seen)))


def dev_rows(seed: int, questions: int, seen: set[Scene]) -> list[dict[str, str]]:
    """Rows of the TSV: for each question its main row and then its circular copies.

    Args:
        seed: the data set's; the pictures come from a stream of their own.
        questions: how many, in turns from the families; the right letter of the main rows goes round as well.
        seen: scenes of the training pictures; none of them is drawn again.
    """
    rows: list[dict[str, str]] = []
    for index in range(questions):
        rng = random.Random(f"{seed}/dev/{index}")
        scene = draw_scene(rng)
        while scene in seen:
            scene = draw_scene(rng)
        # The letter moves on by one after each round of the families, so that every family has every letter.
        letter = (index + index // len(FAMILIES)) % len(LETTERS)
        question = ask(scene, FAMILIES[index % len(FAMILIES)], rng, letter)
        picture = base64.b64encode(jpeg(paint(scene, rng))).decode("ascii")
        for shift in range(len(LETTERS)):
            rows.append(_row(index, shift, question.shifted(shift), picture if shift == 0 else str(index)))
    return rows


def _row(index: int, shift: int, question: Question, image: str) -> dict[str, str]:
    family: Family = question.family
    return {
        "index": str(index + shift * PASS),
        "question": family.question,
        "hint": family.hint,
        **dict(zip(LETTERS, question.options, strict=True)),
        "answer": question.letter,
        "category": family.category,
        "image": image,
        "source": "drawn",
        "l2-category": family.l2_category,
        "comment": family.name,
        "split": "dev",
    }


def _record(name: str, image: str | None, turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A LLaVA record; the picture's mark stands before the first question."""
    conversations = []
    for number, (question, answer) in enumerate(turns):
        mark = "<image>\n" if image is not None and number == 0 else ""
        conversations.append({"from": "human", "value": mark + question})
        conversations.append({"from": "gpt", "value": answer})
    return {"id": name, **({} if image is None else {"image": image}), "conversations": conversations}


def _json(rows: list[dict[str, Any]]) -> bytes:
    return (json.dumps(rows, indent=1) + "\n").encode()


def _tsv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _write(path: Path, content: bytes) -> None:
    # Aside and moved into place: whoever reads meanwhile sees the old file or the new one, never half of it.
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    os.replace(aside, path)
