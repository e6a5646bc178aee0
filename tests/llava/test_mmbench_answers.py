"""Shards, batches, restarts and kills: every row is answered once, and always the same."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava import mmbench
from llava.config import EvalJob
from llava.errors import ConfigError, DataError, Interrupted
from llava.evals import run
from llava.evals.fingerprint import weights_id
from llava.run_folder import read_lines
from tests.llava.tiny_hf import build_llava, question_rows, some_rows, write_tsv


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_language: Path, tiny_vision: Path) -> Path:
    place = tmp_path_factory.mktemp("hf")
    return build_llava(place, tiny_language, tiny_vision, {"template": "vicuna", "square": "pad"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tsv(tmp_path_factory.mktemp("data") / "TINY_DEV.tsv", some_rows())


def job(folder: Path, model: Path, data: Path, **changes: Any) -> EvalJob:
    values = {"model": str(model), "data": str(data), "batch": 4, "max_new_tokens": 6, "device": "cpu", **changes}
    return EvalJob.model_validate({"kind": "eval", "run_dir": str(folder), "eval": values})


def lines(folder: Path, below: str = "answers") -> list[dict[str, Any]]:
    return [line for path in sorted((folder / "eval/mmbench" / below).glob("*.jsonl")) for line in read_lines(path)]


def predictions(folder: Path) -> dict[int, str]:
    return {line["index"]: line["prediction"] for line in read_lines(folder / "eval/mmbench/predictions.jsonl")}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> dict[int, str]:
    """One shard, one row at a time."""
    folder = tmp_path_factory.mktemp("reference")
    mmbench.start(job(folder, model, data, batch=1))
    return predictions(folder)


def test_the_reference_answers_differ_between_rows(reference: dict[int, str]) -> None:
    assert len(reference) == 29
    assert len(set(reference.values())) > 5


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_any_shards_and_batch_give_the_same(
    tmp_path: Path, model: Path, data: Path, reference: dict[int, str], shards: int, batch: int
) -> None:
    todo = job(tmp_path, model, data, batch=batch, shards=shards)
    for shard in reversed(range(shards)):
        mmbench.start(todo, shard)
    mmbench.start(todo, merge=True)
    assert predictions(tmp_path) == reference
    assert max(Counter(line["index"] for line in lines(tmp_path)).values()) == 1


def test_a_template_with_the_text_in_front_is_batched_as_well(
    tmp_path: Path, data: Path, tiny_language: Path, tiny_vision: Path
) -> None:
    foreign = build_llava(tmp_path / "foreign", tiny_language, tiny_vision)
    (foreign / "chat_template.jinja").write_text(
        "{% for message in messages %}{% for part in message['content'] | reverse %}"
        "{% if part['type'] == 'image' %} <image> {% else %}USER: {{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %} ASSISTANT:"
    )
    for batch in (1, 16):
        mmbench.start(job(tmp_path / str(batch), foreign, data, batch=batch))
    assert predictions(tmp_path / "1") == predictions(tmp_path / "16")
    assert len(set(predictions(tmp_path / "1").values())) > 5


def test_each_picture_is_encoded_once(tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.hf_model import HfLlava

    encoded: list[int] = []
    encode = HfLlava.encode_pixels

    def counting(self: HfLlava, pixels: Any) -> Any:
        encoded.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(HfLlava, "encode_pixels", counting)
    mmbench.start(job(tmp_path, model, data, batch=3))
    assert sum(encoded) == 8  # ten questions, two of which use another one's picture


def test_a_killed_shard_loses_no_more_than_its_batch(tmp_path: Path, model: Path, data: Path) -> None:
    slow = job(tmp_path, model, data, batch=1, max_new_tokens=150)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(slow.model_dump()))
    process = subprocess.Popen([sys.executable, "-m", "llava.mmbench", "--config", str(config), "--shard", "0"])
    try:
        _wait_for(lambda: len(lines(tmp_path)) >= 5, process)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    before = lines(tmp_path)
    assert 5 <= len(before) < 29
    # What a kill in the middle of a write leaves behind.
    with next((tmp_path / "eval/mmbench/answers").glob("*.jsonl")).open("ab") as file:
        file.write(b'{"index": 3, "predic')
    again = job(tmp_path, model, data, batch=4, max_new_tokens=150, shards=3)
    for shard in range(3):
        mmbench.start(again, shard)
    mmbench.start(again, merge=True)
    after = lines(tmp_path)
    assert Counter(line["index"] for line in after) == Counter(dict.fromkeys(predictions(tmp_path), 1))
    assert len(after) == 29
    kept = {line["index"]: line for line in after}
    assert all(kept[line["index"]] == line for line in before)


def test_a_term_signal_ends_with_175_after_the_batch(tmp_path: Path, model: Path, data: Path) -> None:
    slow = job(tmp_path, model, data, batch=1, max_new_tokens=150)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(slow.model_dump()))
    attempt = tmp_path / "attempts/0"
    environment = {**os.environ, "LLAVAJOB_ATTEMPT_DIR": str(attempt)}
    process = subprocess.Popen(
        [sys.executable, "-m", "llava.mmbench", "--config", str(config), "--shard", "0"], env=environment
    )
    try:
        _wait_for(lambda: bool(lines(tmp_path)), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 175
    finally:
        process.kill()
    assert 0 < len(lines(tmp_path)) < 29
    assert not (attempt / "errors").exists()
    last = list(read_lines(tmp_path / "metrics.jsonl"))[-1]
    assert last["step"] == len(lines(tmp_path))
    assert (last["shard"], last["total_steps"]) == (0, 29)
    assert "WARNING asked to stop" in (attempt / "rank0000.log").read_text()


def _wait_for(there: Any, process: subprocess.Popen[bytes]) -> None:
    while not there():
        assert process.poll() is None, "the shard ended too early"
        time.sleep(0.01)


def test_a_stop_keeps_the_batch_that_was_done(tmp_path: Path, model: Path, data: Path) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        run.answer_shard(job(tmp_path, model, data), 0, 1, lambda: next(asked))
    assert len(lines(tmp_path)) == 8


def test_a_picture_cut_off_in_the_middle_is_named_and_the_rest_is_kept(tmp_path: Path, model: Path) -> None:
    rows = some_rows()
    whole = base64.b64decode(next(row["image"] for row in rows if row["index"] == "0"))
    rows[0]["image"] = base64.b64encode(whole[: len(whole) * 2 // 3]).decode()
    # The shortest question, so that it is answered last.
    rows = [row | ({"question": "What?"} if int(row["index"]) % 1_000_000 == 0 else {}) for row in rows]
    with pytest.raises(DataError, match="the picture of row 0 cannot be decoded"):
        mmbench.start(job(tmp_path, model, write_tsv(tmp_path / "data.tsv", rows), batch=1))
    assert len(lines(tmp_path)) == 27


def test_merging_needs_no_torch(tmp_path: Path, model: Path, data: Path) -> None:
    todo = job(tmp_path, model, data)
    mmbench.start(todo)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(todo.model_dump()))
    script = (
        "import sys\nfrom llava import mmbench\n"
        f"assert mmbench.main(['--config', {str(config)!r}, '--merge']) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "circular" in done.stdout


def test_a_missing_row_is_named_and_there_is_no_score(tmp_path: Path, model: Path, data: Path) -> None:
    todo = job(tmp_path, model, data, shards=3)
    mmbench.start(todo, 0)
    mmbench.start(todo, 2)
    with pytest.raises(DataError) as caught:
        mmbench.start(todo, merge=True)
    done = {line["index"] for line in lines(tmp_path)}
    missing = sorted({int(row["index"]) for row in some_rows()} - done)
    assert caught.value.message == f"{len(missing)} of 29 rows have no answer: {', '.join(map(str, missing))}"
    assert "Run these shards of 3 again, they answer only what is missing: 1." in caught.value.hint
    assert not (tmp_path / "eval/mmbench/scores.json").exists()
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(todo.model_dump()))
    done_again = subprocess.run(
        [sys.executable, "-m", "llava.mmbench", "--config", str(config), "--merge"], capture_output=True, text=True
    )
    assert done_again.returncode == 3
    assert caught.value.message in done_again.stderr
    assert "Traceback" not in done_again.stderr


def test_other_weights_and_other_settings_are_answered_anew(
    tmp_path: Path, model: Path, data: Path, tiny_language: Path, tiny_vision: Path
) -> None:
    mmbench.start(job(tmp_path, model, data))
    mmbench.start(job(tmp_path, model, data))
    assert len(lines(tmp_path)) == 29
    mmbench.start(job(tmp_path, model, data, max_new_tokens=3))
    assert len(lines(tmp_path)) == 58
    mmbench.start(job(tmp_path, model, data, template="chatml"))
    assert len(lines(tmp_path)) == 87


def test_a_model_is_known_by_its_weights_not_by_its_place(tmp_path: Path, model: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert weights_id(copy) == weights_id(model)
    weights = load_file(copy / "model.safetensors")
    key = next(name for name in weights if name.endswith("linear_2.bias"))
    weights[key] = weights[key] + torch.tensor(1e-3)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert weights_id(copy) != weights_id(model)


def test_equal_double_answers_are_counted_and_different_ones_refused(
    tmp_path: Path, model: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    todo = job(tmp_path, model, data)
    mmbench.start(todo)
    (path,) = (tmp_path / "eval/mmbench/answers").glob("*.jsonl")
    twice = path.read_text().splitlines()[4]
    (path.parent / "shard0001of0002.jsonl").write_text(twice + "\n")
    mmbench.start(todo, merge=True)
    assert json.loads((tmp_path / "eval/mmbench/scores.json").read_text())["repeated_answers"] == 1
    other = {**json.loads(twice), "prediction": "something else"}
    (path.parent / "shard0001of0002.jsonl").write_text(json.dumps(other) + "\n")
    with pytest.raises(DataError, match=rf"two different answers .*: {other['index']}\n"):
        mmbench.start(todo, merge=True)
    (path.parent / "shard0001of0002.jsonl").write_text(json.dumps({**other, "index": 77}) + "\n")
    with pytest.raises(DataError, match=r"answers to rows that are not in .*: 77"):
        mmbench.start(todo, merge=True)


def test_under_torchrun_each_rank_is_a_shard_and_the_last_one_scores(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, reference: dict[int, str]
) -> None:
    todo = job(tmp_path, model, data)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        assert not (tmp_path / "eval/mmbench/scores.json").exists()
        monkeypatch.setenv("RANK", rank)
        mmbench.start(todo)
    assert predictions(tmp_path) == reference
    assert {line["shard"] for line in read_lines(tmp_path / "metrics.jsonl")} == {0, 1}


def test_a_shard_that_does_not_exist_is_refused(tmp_path: Path, model: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="shard 2 of 2 does not exist"):
        mmbench.start(job(tmp_path, model, data, shards=2), 2)


def test_chinese_rows_are_asked_in_chinese_and_english_ones_in_english(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava.hf_model import HfLlava

    prompts: list[str] = []
    encode = HfLlava.chunks

    def reading(self: HfLlava, turns: Any) -> list[list[int]]:
        chunks = encode(self, turns)
        prompts.append("<image>".join(self.tokenizer.decode(ids) for ids in chunks))
        return chunks

    monkeypatch.setattr(HfLlava, "chunks", reading)
    rows = question_rows(1, ["春节", "中秋"], hint="图中是节日。", question="这是什么节日？")
    rows += question_rows(2, ["red", "blue"], question="Which colour?")
    mmbench.start(job(tmp_path, model, write_tsv(tmp_path / "MMBench_DEV_CN.tsv", rows), batch=1))
    english = "Answer with the option's letter from the given choices directly."
    assert sorted(prompts) == sorted(
        [
            "<s>USER: <image>\n图中是节日。\n这是什么节日？\nA. 春节\nB. 中秋\n请直接回答选项字母。 ASSISTANT:",
            "<s>USER: <image>\n图中是节日。\n这是什么节日？\nA. 中秋\nB. 春节\n请直接回答选项字母。 ASSISTANT:",
            f"<s>USER: <image>\nWhich colour?\nA. red\nB. blue\n{english} ASSISTANT:",
            f"<s>USER: <image>\nWhich colour?\nA. blue\nB. red\n{english} ASSISTANT:",
        ]
    )
