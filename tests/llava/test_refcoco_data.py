"""From REFER's annotations to evaluation files and training records, and no program of a pickle is ever run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava.data.records import read_records
from llava.errors import ConfigError, DataError
from llava.evals.refcoco.boxes import normalised, read_box
from llava.evals.refcoco.phrases import IDENTIFY, REFER, picture_question
from llava.evals.refcoco.prepare import prepare
from llava.evals.refcoco.refer import DATASETS, read_refer
from llava.evals.refcoco.rows import read
from tests.llava.test_refcoco import DIGITS, write_pictures

SPLITS = ("train", "val", "testA", "testB", "train", "test", "train")


def annotations(folder: Path, protocol: int = 2) -> Path:
    """Seven objects in three pictures for each dataset; the last two train objects have a phrase in common."""
    for name, (divided_by, _) in DATASETS.items():
        place = folder / name
        place.mkdir(parents=True)
        images = [{"id": int(digits), "height": 40, "width": 60 - 9 * i} for i, digits in enumerate(DIGITS)]
        boxes = [{"id": 100 + n, "bbox": [4.0, 4.0, 16.5 + n, 16]} for n in range(len(SPLITS))]
        (place / "instances.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": []}))
        with (place / f"refs({divided_by}).p").open("wb") as file:
            pickle.dump([reference(number, split) for number, split in enumerate(SPLITS)], file, protocol)
    return folder


def reference(number: int, split: str) -> dict[str, Any]:
    digits = DIGITS[0] if number in (4, 6) else DIGITS[number % 3]
    phrases = ["Left one.", "the SAME"] if number in (4, 6) else [f"Thing {number}!", "naïve dog"]
    return {
        "ref_id": number,
        "ann_id": 100 + number,
        "image_id": int(digits),
        "file_name": f"COCO_train2014_{digits}_{number}.jpg",
        "split": split,
        "sentences": [
            {"raw": raw, "sent": raw.lower().strip(".!"), "sent_id": number, "tokens": []} for raw in phrases
        ],
    }


def load(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_each_part_of_evaluation_has_a_file_of_its_own(tmp_path: Path, protocol: int) -> None:
    told = prepare(annotations(tmp_path / "refer", protocol), tmp_path / "out")
    names = {"refcoco_val", "refcoco_testA", "refcoco_testB", "refcoco+_val", "refcoco+_testA", "refcoco+_testB",
             "refcocog_val", "refcocog_test"}  # fmt: skip
    assert {path.stem for path in (tmp_path / "out").iterdir()} == names | {"train", "refer", "identify"}
    assert f"{tmp_path / 'out/refcocog_test'}.json  2 rows" in told
    assert load(tmp_path / "out/refcoco_testA.json")[0] == {
        "img_id": f"COCO_train2014_{DIGITS[2]}_2",
        "sents": "thing 2",
        "bbox": [4.0, 4.0, 18.5, 16.0],
        "height": 40,
        "width": 42,
    }
    found = read(tmp_path / "out/refcoco_testA.json", write_pictures(tmp_path / "images"))
    assert [row.phrase for row in found.rows] == ["thing 2", "naïve dog"]


def test_training_rows_are_each_phrase_of_a_picture_once(tmp_path: Path) -> None:
    prepare(annotations(tmp_path / "refer"), tmp_path / "out")
    rows = load(tmp_path / "out/train.json")
    of_one = [row for row in rows if row["id"].startswith("refcoco-")]
    assert [row["id"] for row in of_one] == [
        f"refcoco-unc-{DIGITS[0]}-Thing_0!", f"refcoco-unc-{DIGITS[0]}-naïve_dog",
        f"refcoco-unc-{DIGITS[0]}-Left_one.", f"refcoco-unc-{DIGITS[0]}-the_SAME",
    ]  # fmt: skip
    assert of_one[3]["bbox"] == [4.0, 4.0, 20.5, 16.0]  # of the first object that has the phrase
    assert of_one[0]["image"] == f"coco/train2017/{DIGITS[0]}.jpg"
    assert len(rows) == 12


def test_records_are_all_questions_of_both_kinds(tmp_path: Path) -> None:
    prepare(annotations(tmp_path / "refer"), tmp_path / "out")
    rows = load(tmp_path / "out/train.json")
    refer, identify = load(tmp_path / "out/refer.json"), load(tmp_path / "out/identify.json")
    assert len(refer) == len(identify) == 7 * 12
    box = normalised(rows[0]["bbox"], 40, 60)
    for n in range(7):
        assert [message["value"] for message in refer[n]["conversations"]] == [
            REFER[n].format("Thing 0!") + "\n<image>", box.text,
        ]  # fmt: skip
        assert [message["value"] for message in identify[n]["conversations"]] == [
            IDENTIFY[n].format(box.text) + "\n<image>", "Thing 0!",
        ]  # fmt: skip
    assert len({record["id"] for record in refer + identify}) == 14 * 12


def test_the_evaluation_asks_as_one_of_the_trained_questions(tmp_path: Path) -> None:
    prepare(annotations(tmp_path / "refer"), tmp_path / "out")
    first, second, *_ = read_records(tmp_path / "out/refer.json")
    assert second.turns[0].question == picture_question("Thing 0!")
    assert first.turns[0].question == "<image>\n[refer] Thing 0!"
    assert read_box(second.turns[0].answer) == normalised([4.0, 4.0, 16.5, 16], 40, 60)


def test_the_fourteen_questions_are_the_originals() -> None:
    assert (len(set(REFER)), len(set(IDENTIFY))) == (7, 7)
    assert REFER[1] == "[refer] give me the location of {}"
    assert IDENTIFY[2] == "[identify] identify the object present at this location {}"
    assert all(text.startswith("[refer] ") and text.count("{}") == 1 for text in REFER)
    assert all(text.startswith("[identify] ") and text.count("{}") == 1 for text in IDENTIFY)


def test_the_drawn_part_depends_on_the_seed_alone(tmp_path: Path) -> None:
    refer = annotations(tmp_path / "refer")
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        prepare(refer, tmp_path / name, limit=10, seed=seed)
    drawn = {name: (tmp_path / name / "refer.json").read_bytes() for name in "abc"}
    assert drawn["a"] == drawn["b"] != drawn["c"]
    assert len(load(tmp_path / "a/refer.json")) == len(load(tmp_path / "a/identify.json")) == 10


def test_a_mix_holds_all_three(tmp_path: Path) -> None:
    mix = tmp_path / "mix665k.json"
    mix.write_text(json.dumps([{"id": "x", "conversations": []}]))
    prepare(annotations(tmp_path / "refer"), tmp_path / "out", limit=5, mix=mix)
    assert [record["id"] for record in load(tmp_path / "out/mix.json")][-1] == "x"
    assert len(load(tmp_path / "out/mix.json")) == 11


class Runs:
    """What a hostile pickle holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_a_program_is_refused(tmp_path: Path) -> None:
    refer = annotations(tmp_path / "refer")
    path = refer / "refcoco/refs(unc).p"
    path.write_bytes(pickle.dumps([Runs(tmp_path / "ran")]))
    with pytest.raises(
        DataError, match=r"names posix\.mkdir, which is no plain value(.|\n)*refs\(unc\)\.json may stand"
    ):
        prepare(refer, tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
    for name in ("eval", "getattr", "__import__"):
        path.write_bytes(f"c__builtin__\n{name}\n.".encode())
        with pytest.raises(DataError, match=f"it names (__builtin__|builtins).{name}"):
            list(read_refer(refer / "refcoco", "unc"))


def test_python_2s_byte_strings_are_text(tmp_path: Path) -> None:
    refer = annotations(tmp_path / "refer")
    reference = (
        "(lp0\n(dp1\nS'split'\nS'train'\nsS'file_name'\nS'x_1.jpg'\nsS'image_id'\nI9\nsS'ann_id'\nL100L\n"
        "sS'sentences'\n(lp2\n(dp3\nS'raw'\nVDog\nsS'sent'\nS'dog'\nsasa."
    )
    (refer / "refcoco/refs(unc).p").write_bytes(reference.encode())
    (one,) = read_refer(refer / "refcoco", "unc")
    assert (one.split, one.raw, one.plain, one.image_id) == ("train", ("Dog",), ("dog",), 9)


def test_json_goes_before_the_pickle(tmp_path: Path) -> None:
    refer = annotations(tmp_path / "refer")
    (refer / "refcoco/refs(unc).json").write_text(json.dumps([reference(1, "val")]))
    (refer / "refcoco/refs(unc).p").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    (one,) = read_refer(refer / "refcoco", "unc")
    assert one.split == "val" and one.bbox == [4.0, 4.0, 17.5, 16.0]


def test_a_part_without_phrases_has_no_file(tmp_path: Path) -> None:
    refer = annotations(tmp_path / "refer")
    (refer / "refcoco/refs(unc).json").write_text(json.dumps([reference(1, "val")]))
    told = prepare(refer, tmp_path / "out")
    assert f"{tmp_path / 'out/refcoco_val'}.json  2 rows" in told
    assert not (tmp_path / "out/refcoco_testA.json").exists()


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has none of refcoco, refcoco\+, refcocog"):
        prepare(tmp_path, tmp_path / "out")
    refer = annotations(tmp_path / "refer")
    shutil.rmtree(refer / "refcoco+")
    prepare(refer, tmp_path / "two")
    assert not (tmp_path / "two/refcoco+_val.json").exists()
    (refer / "refcocog/refs(umd).p").unlink()
    with pytest.raises(ConfigError, match=r"file not found: .*refs\(umd\)\.p"):
        prepare(refer, tmp_path / "out")
    (refer / "refcocog/refs(umd).p").write_bytes(b"\x80\x02]q")
    with pytest.raises(DataError, match=r"cannot read .*refs\(umd\)\.p"):
        prepare(refer, tmp_path / "out")
    (refer / "refcocog/refs(umd).p").write_bytes(pickle.dumps([{"sentences": []}]))
    with pytest.raises(DataError, match="does not hold REFER's annotations: KeyError 'image_id'"):
        prepare(refer, tmp_path / "out")


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    words = [str(annotations(tmp_path / "refer")), str(tmp_path / "out"), "--limit", "9"]
    done = subprocess.run([sys.executable, "-m", "llava", "refcoco-data", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'out/refer'}.json  9 rows" in done.stdout
