"""From REFER's annotations to files: evaluation rows by part, and records to learn grounding from.

As XTuner 0.1.23 prepares them (``convert_refcoco.py``, ``refcoco_json.py``): the parts ``train`` of all three datasets,
a phrase of a picture once, each in seven questions for its box and in seven for the phrase of its box, and a random
70,000 of either.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llava.errors import ConfigError, DataError
from llava.evals.refcoco.boxes import normalised
from llava.evals.refcoco.phrases import IDENTIFY, REFER
from llava.evals.refcoco.refer import DATASETS, Referred, read_refer
from llava.evals.refcoco.rows import LAYOUTS
from llava.run_folder import write_aside
from llava.templates import IMAGE_TAG

LIMIT = 70_000
"""Records of each kind that XTuner's recipe draws."""


def prepare(annotations: Path, output: Path, limit: int = LIMIT, seed: int = 0, mix: Path | None = None) -> list[str]:
    """Write every file that has rows.

    ``<dataset>_<part>.json`` for evaluation; ``train.json`` with phrases and boxes; ``refer.json`` and
    ``identify.json`` with LLaVA records; and ``mix.json`` with both and the mix's records.

    Args:
        annotations: folder with refcoco, refcoco+ and refcocog, or some of them.
        output: folder to write to.
        limit: most records of each kind.
        seed: what they are drawn by.
        mix: records that are trained on together with these, such as LLaVA's 665K.

    Returns:
        one line a file: its name and how many rows it has.

    Raises:
        ConfigError: there are no annotations, or a file is missing.
        DataError: a file cannot be read.
    """
    there = [name for name in DATASETS if (annotations / name).is_dir()]
    if not there:
        raise ConfigError(
            f"{annotations} has none of {', '.join(DATASETS)}", "It is the folder with REFER's annotations."
        )
    objects = {name: list(read_refer(annotations / name, DATASETS[name][0])) for name in there}
    files: dict[str, list[dict[str, Any]]] = {}
    for name in there:
        for split in DATASETS[name][1]:
            files[f"{name}_{split}"] = list(_evaluation(one for one in objects[name] if one.split == split))
    train = files["train"] = _training(objects)
    files["refer"] = _drawn(train, REFER, _refer, limit, f"{seed}/refer")
    files["identify"] = _drawn(train, IDENTIFY, _identify, limit, f"{seed}/identify")
    if mix is not None:
        files["mix"] = [*files["refer"], *files["identify"], *_records(mix)]
    files = {name: rows for name, rows in files.items() if rows}
    for name, rows in files.items():
        write_aside(output / f"{name}.json", json.dumps(rows, ensure_ascii=False) + "\n")
    return [f"{output / name}.json  {len(rows):,} rows" for name, rows in files.items()]


def _evaluation(objects: Iterable[Referred]) -> Iterator[dict[str, Any]]:
    """One row a phrase, with MiniGPT-4's keys."""
    for one in objects:
        for phrase in one.plain:
            yield {
                "img_id": Path(one.file_name).stem,
                "sents": phrase,
                "bbox": one.bbox,
                "height": one.height,
                "width": one.width,
            }


def _training(objects: dict[str, list[Referred]]) -> list[dict[str, Any]]:
    """One row a phrase of a picture; of equal ones the first, whatever object it names."""
    rows: dict[str, dict[str, Any]] = {}
    for name, ones in objects.items():
        for one in ones:
            digits = f"{one.image_id:012d}"
            for phrase in one.raw if one.split == "train" else ():
                key = f"{name}-{DATASETS[name][0]}-{digits}-{'_'.join(phrase.split(' '))}"
                row = {"id": key, "image": LAYOUTS[0].format(digits), "sents": phrase, "bbox": one.bbox}
                rows.setdefault(key, row | {"height": one.height, "width": one.width})
    return list(rows.values())


def _drawn(
    rows: list[dict[str, Any]],
    questions: tuple[str, ...],
    turn: Callable[[dict[str, Any], str], tuple[str, str]],
    limit: int,
    seed: str,
) -> list[dict[str, Any]]:
    """A random part of all rows in all questions, in the rows' order."""
    every = len(rows) * len(questions)
    chosen = sorted(random.Random(seed).sample(range(every), min(limit, every)))
    return [_record(rows[n // len(questions)], n % len(questions), questions, turn) for n in chosen]


def _record(
    row: dict[str, Any],
    number: int,
    questions: tuple[str, ...],
    turn: Callable[[dict[str, Any], str], tuple[str, str]],
) -> dict[str, Any]:
    asked, told = turn(row, questions[number])
    return {
        "id": f"{row['id']}-{questions[number][1:6]}{number}",
        "image": row["image"],
        "conversations": [
            {"from": "human", "value": f"{asked}\n{IMAGE_TAG}"},
            {"from": "gpt", "value": told},
        ],
    }


def _refer(row: dict[str, Any], question: str) -> tuple[str, str]:
    return question.format(row["sents"]), normalised(row["bbox"], row["height"], row["width"]).text


def _identify(row: dict[str, Any], question: str) -> tuple[str, str]:
    return question.format(normalised(row["bbox"], row["height"], row["width"]).text), row["sents"]


def _records(path: Path) -> list[Any]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"file not found: {path}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    if not isinstance(records, list):
        raise DataError(f"{path} holds no JSON list of records")
    return records
