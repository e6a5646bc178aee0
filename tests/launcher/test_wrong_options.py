"""Odd options and names on every command: exit 0 or 2 with words, in a moment; all in one process."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from launcher import cli

NAMES = ("", "\udcff", "../x", "/", "a\nb", "a" * 5000, "\x1b[31m", ".", "~nosuch/x", "r1/..")
NUMBERS = ("9" * 20, "-1", "9" * 5000, "x", "1e3")
COUNTS = ("--tail", "--rank", "--node", "--shard", "--attempt")
TIMES = ("9" * 30 + "d", "9" * 400 + "d", "-1d", "nan", "1e5s", "", "inf", "2h3m")
CHANGES = ("", "=", "a", "=x", ".=1", "seed=", "\udcff=\udcff", "stages.x=1")
COMMANDS = [
    *[["logs", "r1", option, number] for option in COUNTS for number in NUMBERS],
    *[["logs", "r1", "--since", text] for text in TIMES],
    *[["logs", "r1", "--grep", text] for text in ("(", "[", "*", "\udcff", "a" * 5000, "(?i", "\\")],
    *[[command, name] for command in ("status", "logs", "resume", "recipes", "render") for name in NAMES],
    *[["list", "--state", text] for text in ("", "x" * 3000, "\udcff", "failed")],
    *[["doctor", "--on", text] for text in ("nosuch", "\udcff", "x" * 3000)],
    *[["submit", "quickstart", "--name", text] for text in ("", "\udcff", "x" * 3000, "../x")],
    *[["submit", "quickstart", "--set", text] for text in CHANGES],
    *[["submit", "quickstart", "--nodes", text] for text in NUMBERS],
    *[["render", text] for text in ("~", "./\udcff.yaml", "llava-v1.5-7b/../x", "/dev/null", "/dev/zero", "jobs")],
]  # fmt: skip


def test_no_option_ends_in_a_traceback_or_takes_long(
    own_place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(own_place)
    folder = Path(os.environ["LLAVAJOB_RUNS"]) / "r1"
    (folder / "logs").mkdir(parents=True)
    record = {"name": "r1", "created": 1.0, "recipe": "x", "kind": "train", "source": "x", "backend": "local"}
    rest = {"profile": "local", "submissions": [], "folder": "/tmp", "origins": {}, "recipe_tree": {}}
    (folder / "run.json").write_text(json.dumps({"format": 1, **record, **rest}))
    (folder / "state.json").write_text(json.dumps({"state": "FAILED", "reason": "x"}))
    wrong = []
    for command in COMMANDS:
        monkeypatch.setattr(sys, "argv", ["llavajob", *command])
        start = time.process_time()
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        took_s = time.process_time() - start
        said = capsys.readouterr().err
        if code not in (0, 2) or "unforeseen" in said or (code == 2 and not said.strip()) or took_s > 5:
            wrong.append(([word[:40] for word in command], code, said[:300], took_s))
    assert not wrong
    assert [entry.name for entry in folder.parent.iterdir()] == ["r1"], "nothing was started"
