"""The command line: light to start, plain words when something is wrong, the same work as the modules."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llava import config, entry, interrupt, logs
from llava.run_folder import read_lines
from tests.llava.tiny_hf import build_llava, some_rows, write_tsv


def llava(*arguments: object, where: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llava", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=where)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_language: Path, tiny_vision: Path) -> Path:
    return build_llava(tmp_path_factory.mktemp("hf"), tiny_language, tiny_vision, {"template": "vicuna"})


def test_help_is_light() -> None:
    script = (
        "import sys\nfrom llava.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in ("train", "convert", "merge", "mmbench", "refcoco", "chat", "data", "toy", "schema"):
        assert verb in done.stdout


def test_schema_is_the_configs() -> None:
    done = llava("schema")
    assert json.loads(done.stdout) == config.schema()
    assert done.stdout == json.dumps(config.schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("verb", ["convert", "mmbench", "toy", "train"])
def test_a_missing_config_is_said_without_a_traceback(verb: str, tmp_path: Path) -> None:
    done = llava(verb, "--config", tmp_path / "none.yaml")
    assert done.returncode == 2
    assert f"config file not found: {tmp_path / 'none.yaml'}" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("verb", ["convert", "mmbench", "toy"])
def test_a_config_of_another_kind_is_refused(verb: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    model = {"language": {"path": "l"}, "vision": {"path": "v"}}
    data = {"records": "r", "images": "i"}
    path.write_text(yaml.safe_dump({"kind": "train", "run_dir": str(tmp_path), "model": model, "data": data}))
    done = llava(verb, "--config", path)
    assert done.returncode == 2
    assert "is a config of kind train, not" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mmbench"], "mmbench takes --config FILE, or MODEL DATA"),
        (["mmbench", "m", "d.tsv", "--batch", "0"], "eval.batch"),
        (["mmbench", "m", "d.tsv", "--scorer", "guess"], "eval.scorer"),
        (["mmbench", "m", "d.tsv", "--config", "c.yaml"], "give --config or MODEL, not both"),
        (["mmbench", "m", "d.tsv"], "cannot read d.tsv"),
        (["convert"], "convert takes --config FILE, or SOURCE OUTPUT"),
        (["convert", "a", "b", "--dtype", "int4"], "convert.dtype"),
        (["convert", "a", "b", "--config", "c.yaml"], "give --config or paths, not both"),
        (["convert", "nowhere", "out"], "no trained model in nowhere"),
        (["chat", "nowhere", "Hi"], "nowhere is no Hugging Face model folder"),
        (["chat", "nowhere", "Hi", "--4-bit", "--8-bit"], "give --4-bit or --8-bit, not both"),
        (["chat", "nowhere", "Hi", "--template", "x", "--device", "tpu"], "device 'tpu' is none of auto, cpu, cuda"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_requests_are_said_without_a_traceback(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = llava(*arguments, where=tmp_path)
    assert done.returncode in (2, 3)
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_mmbench_by_hand(model: Path, tmp_path: Path) -> None:
    data = write_tsv(tmp_path / "TINY_DEV.tsv", some_rows(3))
    options = ["--batch", "4", "--max-new-tokens", "3", "--device", "cpu", "--work-dir", tmp_path / "work"]
    done = llava("mmbench", model, data, *options)
    assert done.returncode == 0, done.stderr
    assert "circular" in done.stdout
    assert json.loads((tmp_path / "work/eval/mmbench/scores.json").read_text())["rows"] == 9
    (last,) = read_lines(tmp_path / "work/metrics.jsonl")
    assert (last["shard"], last["step"], last["total_steps"]) == (0, 9, 9)
    again = llava("mmbench", model, data, *options)
    assert "9 rows, 9 answered before" in again.stderr
    assert again.stdout == done.stdout


def test_untrained_by_hand(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    done = llava("convert", tmp_path / "hf", "--language", tiny_language, "--vision", tiny_vision, "--seed", 3)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "hf" / "llavajob.json").exists()


@pytest.mark.parametrize(
    ("error", "code", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "answers"), 3, "The disk is full: free space there."),
        (OSError(errno.EFBIG, "File too large"), 3, "Files there may not grow that large (ulimit -f)."),
        (BrokenPipeError(), 141, ""),
        (KeyboardInterrupt(), 130, ""),
        (RuntimeError("a bug"), 1, "Traceback"),
    ],
)
def test_what_goes_wrong_ends_in_a_code_and_a_hint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException, code: int, hint: str
) -> None:
    def work() -> None:
        raise error

    monkeypatch.setattr(entry, "prepare", lambda rank, on_signal: None)
    monkeypatch.setattr(logs.LOG, "propagate", True)
    assert entry.guarded(work, on_signal="default") == code
    assert hint in caplog.text
    assert ("Traceback" in caplog.text) == (code == 1)


def test_a_signal_stops_what_keeps_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in interrupt.ASKED_BY}
    monkeypatch.setattr(logs, "start", lambda rank: None)
    monkeypatch.setenv("RANK", "0")

    def work() -> None:
        signal.raise_signal(signal.SIGTERM)

    try:
        assert entry.guarded(work, on_signal="stop") == 175
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
