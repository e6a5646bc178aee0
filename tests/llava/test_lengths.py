"""Where texts are cut: with a picture and without, as in LLaVA, whose limit holds after the picture is in place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.data.index import TokenIndex
from llava.run_folder import RunFolder
from tests.llava.train_helpers import Bases, make_job, train_here


@pytest.mark.parametrize(("text_only", "expected"), [(30, (24, 30)), (None, (24, 24)), (10, (24, 10))])
def test_texts_are_cut_by_whether_there_is_a_picture(
    tiny_language: Path,
    tiny_vision: Path,
    tiny_records: Path,
    tmp_path: Path,
    text_only: int | None,
    expected: tuple[int, int],
) -> None:
    long = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b " * 50}]
    picture = [{"from": "human", "value": "<image>\na"}, long[1]]
    image = json.loads((tiny_records / "records.json").read_text())[0]["image"]
    records = [{"id": str(n), "conversations": long} for n in range(4)]
    records += [{"id": f"p{n}", "conversations": picture, "image": image} for n in range(4)]
    (tmp_path / "r.json").write_text(json.dumps(records))
    job = make_job(
        Bases(tiny_language, tiny_vision, tiny_records), tmp_path / "run", records=str(tmp_path / "r.json"), max_steps=1
    )
    changed = {"max_length": 24, "max_length_text_only": text_only}
    run: RunFolder = train_here(job.model_copy(update={"data": job.data.model_copy(update=changed)}))
    (folder,) = (run.root / "cache").glob("index-*")
    index = TokenIndex(folder)
    assert len(index) == index.counts.truncated == 8
    assert {(bool(i), int(n)) for i, n in zip(index.has_image, index.lengths, strict=True)} == {
        (True, expected[0]),
        (False, expected[1]),
    }
