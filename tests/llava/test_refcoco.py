"""Grounding: boxes to the letter, what a file must hold, and answers in shards as for every benchmark."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from llava import refcoco
from llava.config import EvalJob
from llava.errors import ConfigError, DataError
from llava.evals.refcoco.boxes import Box, iou, normalised, read_box
from llava.evals.refcoco.phrases import picture_question
from llava.evals.refcoco.rows import LAYOUTS, Row, Table, read
from llava.evals.refcoco.score import judge, score
from llava.evals.run import subjects
from llava.evals.shards import split
from llava.evals.store import Answer, AnswerFile
from llava.run_folder import read_lines
from tests.llava.tiny_hf import build_llava

DIGITS = ("000000000009", "000000000025", "000000000030")
PHRASES = (
    "left square",
    "the red thing on the right",
    "white one",
    "green",
    "top blue square",
    "square in front of it",
)


def write_pictures(images: Path, layout: str = LAYOUTS[0]) -> Path:
    from PIL import Image, ImageDraw

    for number, digits in enumerate(DIGITS):
        path = images / layout.format(digits)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (60 - 9 * number, 40), (90, 90, 60 * number))
        ImageDraw.Draw(image).rectangle([4, 4, 20 + 5 * number, 20], (200, 30 * number, 30))
        image.save(path)
    return images


def records() -> list[dict[str, Any]]:
    """Six phrases for three pictures, as MiniGPT-4's files have them."""
    return [
        {
            "img_id": f"COCO_train2014_{DIGITS[number % 3]}_{number}",
            "sents": phrase,
            "bbox": [4.0, 4.0, 16.5 + number, 16.0],
            "height": 40,
            "width": 60 - 9 * (number % 3),
        }
        for number, phrase in enumerate(PHRASES)
    ]


def write(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "refcoco_val.json", records())


# --- boxes


def test_a_box_is_written_in_hundredths_rounded_down() -> None:
    box = normalised([0.0, 373.89, 137.59, 126.11], 500, 333)  # of RefCOCO testB
    assert box == (0, 74, 41, 100)
    assert box.text == "{<0><74><41><100>}"


def test_exact_hundredths_are_those_of_the_training_text() -> None:
    """0.29 x 100 is 28.999... in float64; with the original's float32 reciprocal the true box is another one."""
    import torch

    boxes = [normalised([n, n, 1, 1], 100, 100) for n in range(100)]
    assert [box.x1 for box in boxes] == [int(n / 100 * 100) for n in range(100)]
    assert [n for n in range(100) if boxes[n].x1 != n] == [29, 57, 58]
    as_batched = torch.tensor([100])  # how the original's loader gives it a picture's width
    assert [int(n / as_batched * 100) for n in range(100)] != [box.x1 for box in boxes]
    assert all(read_box(box.text) == box for box in boxes)


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("{<0><74><41><100>}", (0, 74, 41, 100)),
        ("It is at [12, 3, 45, 67].", (12, 3, 45, 67)),
        ("{<1><2><3>}", None),
        ("{<1><2><3><4>}{<5>", None),
        ("0.1 0.2 0.3 0.4", None),  # eight whole numbers
        ("", None),
        ("1 2 3 " + "4" * 5000, None),
    ],
)
def test_an_answer_has_a_box_when_its_whole_numbers_are_four(answer: str, box: tuple[int, ...] | None) -> None:
    assert read_box(answer) == box


def by_counting(one: Box, other: Box) -> Fraction:
    """The same ratio from sets of grid cells."""
    cells = [{(x, y) for x in range(box.x1, box.x2 + 1) for y in range(box.y1, box.y2 + 1)} for box in (one, other)]
    return Fraction(len(cells[0] & cells[1]), len(cells[0] | cells[1]))


@pytest.mark.parametrize("seed", range(20))
def test_iou_counts_cells_of_the_grid(seed: int) -> None:
    import random

    rng = random.Random(seed)
    one, other = (
        Box(x, y, x + rng.randint(0, 40), y + rng.randint(0, 40))
        for x, y in ((rng.randint(0, 60), rng.randint(0, 60)) for _ in range(2))
    )
    assert math.isclose(iou(one, other), float(by_counting(one, other)), rel_tol=1e-15)
    assert iou(one, one) == 1


def test_swapped_corners_are_no_box_and_no_crash() -> None:
    true = Box(10, 10, 50, 50)
    assert iou(Box(50, 50, 10, 10), true) == 0
    assert iou(Box(50, 10, 10, 50), true) == 0
    crash = Box(61, 10, 19, 50)
    areas = [(box.x2 - box.x1 + 1) * (box.y2 - box.y1 + 1) for box in (crash, true)]
    assert sum(areas) == 0  # what the original divides by
    assert iou(crash, true) == 0


def table(*boxes: Box) -> Table:
    rows = [Row(i, "it", box, "x.jpg") for i, box in enumerate(boxes)]
    return Table("x.json", "0", rows, Path("."))


def test_right_is_more_than_half_and_not_half() -> None:
    true = Box(0, 0, 9, 9)
    half, more = Box(0, 0, 9, 4), Box(0, 0, 9, 5)
    assert iou(half, true) == 0.5
    judged = judge(table(true, true, true, true), {0: half.text, 1: more.text, 2: "{<9><9><0><0>}", 3: "somewhere"})
    assert [one.correct for one in judged] == [False, True, False, False]
    found = score(judged)
    assert (found.accuracy, found.unreadable, found.swapped) == (0.25, 1, 1)
    assert found.mean_iou == (0.5 + 0.6) / 4


# --- the file


def test_the_question_is_the_trained_one_with_the_picture_in_front() -> None:
    assert picture_question(" taxi ") == "<image>\n[refer] give me the location of  taxi"
    assert picture_question("<image> taxi") == "<image>\n[refer] give me the location of  taxi"


def test_minigpt4s_records_are_read(data: Path, images: Path) -> None:
    found = read(data, images)
    assert [row.index for row in found.rows] == list(range(6))
    assert found.rows[4].picture == "coco/train2017/000000000025.jpg"
    assert found.rows[0].box == normalised([4.0, 4.0, 16.5, 16.0], 40, 60)
    assert found.open_picture(found.rows[1].picture).size == (51, 40)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_are_found_where_cocos_archives_put_them(tmp_path: Path, data: Path, layout: str) -> None:
    write_pictures(tmp_path / "images", layout)
    assert {row.picture for row in read(data, tmp_path / "images").rows} == {layout.format(name) for name in DIGITS}


def test_a_records_own_path_goes_before_the_layout(tmp_path: Path, images: Path) -> None:
    own = [{**record, "image": f"coco/train2017/{DIGITS[0]}.jpg"} for record in records()]
    assert {row.picture for row in read(write(tmp_path / "x.json", own), images).rows} == {own[0]["image"]}


def test_all_problems_are_told_at_once_with_their_records(tmp_path: Path, images: Path) -> None:
    wrong: list[Any] = records()
    wrong[0]["sents"] = " "
    wrong[1]["bbox"] = [1, 2, 0, 4]
    wrong[2]["height"] = 0
    wrong[3]["img_id"] = "train_9"
    wrong[4] = "taxi"
    wrong[5]["img_id"] = "COCO_train2014_000000000077_1"
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "x.json", wrong), images)
    for line in (
        "record 0: sents ' ' is no phrase",
        "record 1: bbox [1, 2, 0, 4] is not [x, y, width, height]",
        "record 2: height and width are 0 and 42",
        "record 3: img_id 'train_9' names no picture",
        "record 4: it is no JSON object",
        "record 5: no picture coco/train2017/000000000077.jpg",
    ):
        assert line in caught.value.message
    assert "1 pictures are not below" in caught.value.hint


def test_numbers_that_json_has_beyond_the_standard_are_refused(tmp_path: Path, images: Path) -> None:
    wrong = records()
    wrong[0]["bbox"] = [math.nan, 0, 1, 1]
    wrong[1]["width"] = math.inf
    with pytest.raises(DataError, match=r"record 0: bbox \[nan(.|\n)*record 1: height and width are 40 and inf"):
        read(write(tmp_path / "x.json", wrong), images)


def test_what_is_no_file_of_phrases_is_refused(tmp_path: Path, images: Path, data: Path) -> None:
    for values in ({}, [], "x"):
        with pytest.raises(DataError, match="holds no JSON list of records"):
            read(write(tmp_path / "x.json", values), images)
    with pytest.raises(DataError, match="cannot read"):
        read(tmp_path / "missing.json", images)
    with pytest.raises(ConfigError, match="image folder not found: None"):
        read(data, None)


def test_a_damaged_picture_is_named(tmp_path: Path, data: Path) -> None:
    path = write_pictures(tmp_path / "images") / LAYOUTS[0].format(DIGITS[1])
    path.write_bytes(path.read_bytes()[:200])
    found = read(data, tmp_path / "images")
    with pytest.raises(DataError, match=rf"{DIGITS[1]}\.jpg cannot be decoded"):
        found.open_picture(found.rows[1].picture)


# --- answers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_language: Path, tiny_vision: Path) -> Path:
    place = tmp_path_factory.mktemp("hf")
    return build_llava(place, tiny_language, tiny_vision, {"template": "chatml", "square": "pad"})


def job(folder: Path, model: Path, data: Path, images: Path, **changes: Any) -> EvalJob:
    values = {
        "benchmark": "refcoco", "model": str(model), "data": str(data), "images": str(images), "batch": 4,
        "max_new_tokens": 6, "device": "cpu", **changes,
    }  # fmt: skip
    return EvalJob.model_validate({"kind": "eval", "run_dir": str(folder), "eval": values})


def predictions(folder: Path) -> list[dict[str, Any]]:
    return list(read_lines(folder / "eval/refcoco/predictions.jsonl"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path, images: Path) -> list[dict[str, Any]]:
    """One shard, one row at a time."""
    folder = tmp_path_factory.mktemp("reference")
    refcoco.start(job(folder, model, data, images, batch=1))
    return predictions(folder)


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 4])
def test_any_shards_and_batch_give_the_same(
    tmp_path: Path, model: Path, data: Path, images: Path, reference: list[dict[str, Any]], shards: int, batch: int
) -> None:
    todo = job(tmp_path, model, data, images, batch=batch, shards=shards)
    for shard in reversed(range(shards)):
        refcoco.start(todo, shard)
    refcoco.start(todo, merge=True)
    assert predictions(tmp_path) == reference
    assert len({line["prediction"] for line in reference}) > 2
    answers = [line for path in (tmp_path / "eval/refcoco/answers").glob("*.jsonl") for line in read_lines(path)]
    assert Counter(line["index"] for line in answers) == Counter(range(6))


def test_a_restarted_shard_does_only_what_is_missing(
    tmp_path: Path, model: Path, data: Path, images: Path, reference: list[dict[str, Any]]
) -> None:
    todo = job(tmp_path, model, data, images, shards=2)
    refcoco.start(todo, 0)
    (path,) = (tmp_path / "eval/refcoco/answers").glob("*.jsonl")
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(kept[0] + kept[1][:20])
    with pytest.raises(DataError, match="5 of 6 rows have no answer"):
        refcoco.start(todo, merge=True)
    for shard in (0, 1):
        refcoco.start(todo, shard)
    refcoco.start(todo, merge=True)
    assert predictions(tmp_path) == reference
    assert path.read_bytes().startswith(kept[0])


def test_shards_never_share_a_picture(data: Path, images: Path) -> None:
    shares = split(read(data, images).rows, 2)
    assert sorted(row.index for share in shares for row in share) == list(range(6))
    assert not {row.picture for row in shares[0]} & {row.picture for row in shares[1]}


def test_scores_and_table(
    tmp_path: Path, model: Path, data: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    todo = job(tmp_path, model, data, images, baseline=str(model))
    found = read(data, images)
    texts = {row.index: row.box.text for row in found.rows} | {1: "nowhere", 2: "{<90><90><1><1>}"}
    wrong = dict.fromkeys(texts, "{<0><0><1><1>}")
    for subject, answers in zip(subjects(todo, found), (texts, wrong), strict=True):
        with AnswerFile(subject.answers, 0, 1) as file:
            file.add([Answer(i, text, subject.fingerprint, "fp32", 1) for i, text in answers.items()])
    refcoco.start(todo, merge=True)
    scores = json.loads((tmp_path / "eval/refcoco/scores.json").read_text())
    assert (scores["accuracy"], scores["unreadable"], scores["swapped"], scores["rows"]) == (4 / 6, 1, 1, 6)
    assert (scores["benchmark"], scores["threshold"], scores["data_md5"]) == ("refcoco", 0.5, found.md5)
    assert scores["baseline"]["accuracy"] == 0
    shown = capsys.readouterr().out
    assert "refcoco_val: 6 phrases" in shown
    (line,) = (line for line in shown.splitlines() if "IoU > 0.5" in line)
    assert "66.7" in line and "0.0" in line
    first = predictions(tmp_path)[0]
    assert first["true_box"] == first["box"] == list(found.rows[0].box)
    assert (first["iou"], first["correct"], first["phrase"]) == (1, True, "left square")


def test_a_model_is_asked_in_its_own_template(tmp_path: Path, model: Path, data: Path, images: Path) -> None:
    todo = job(tmp_path, model, data, images)
    (subject,) = subjects(todo, read(data, images))
    assert subject.settings["template"] == "chatml"


def test_each_module_runs_its_own_benchmark(tmp_path: Path, model: Path, data: Path, images: Path) -> None:
    import yaml

    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(job(tmp_path, model, data, images).model_dump()))
    command = [sys.executable, "-m", "llava", "mmbench", "--config", str(config)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert f"{config} asks for refcoco, not mmbench" in refused.stderr
    command[3] = "refcoco"
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0
    assert (tmp_path / "eval/refcoco/report.txt").exists()


def test_by_hand_it_takes_model_data_and_images(tmp_path: Path, model: Path, data: Path, images: Path) -> None:
    words = ["refcoco", str(model), str(data), "--images", str(images), "--max-new-tokens", "3", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-m", "llava", *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "refcoco_val: 6 phrases" in done.stdout
    assert (tmp_path / f"refcoco/refcoco_val-{model.name}/eval/refcoco/scores.json").exists()
