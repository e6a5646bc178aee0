"""Nothing that a job, a file or another person says can steer the terminal that it is shown on."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher import console
from launcher.plain_text import one_line, plain
from tests.launcher.odd_folders import RECORD, STATE, STEP, Call, call, make_run, root

__all__ = ["call", "root"]

FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
EVIL = (
    "A\x1b]0;title\x07B\x1b]52;c;eHg=\x1b\\C\x1b[2J\x1b[31mD\x9b2JE\x9d0;t\x9cF\x90q\x9cG\x1bcH"
    "\x08I\rJ\u202eK\u2066L\x7fM\u2028N\x85O\nP\x0bQ\x0cR\x1b]0;no end"
)
SHOWN = "A B C D E F G H I J K L M N O P Q R".replace(" ", "[^A-Z]*")


def require_plain(text: str) -> None:
    found = FORBIDDEN.search(text)
    assert found is None, repr(text[max(0, found.start() - 60) : found.end() + 20])


def test_every_mix_of_control_characters_comes_out_plain() -> None:
    chosen = random.Random(1)
    pieces = [chr(n) for n in (*range(0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xDC80)]
    pieces += ["\x1b[", "\x1b]", "\x1b\\", "\x1bP", "é", "漢", "0;", "52;c;", "31m"]
    for _ in range(3000):
        text = "".join(chosen.choices(pieces, k=chosen.randrange(1, 30)))
        require_plain(plain(text))
        require_plain(one_line(text))
        assert "\n" not in one_line(text)
        assert plain(text).count("\n") == text.count("\n")
        assert plain(plain(text)) == plain(text)


@pytest.mark.parametrize("text", ["", "a\tb\nc\n", "é 漢字 🙂", "  two", "[31m", "\\x1b[31m", "a\n\n"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_what_one_line_begins_does_not_swallow_the_next() -> None:
    assert plain("one\x1b]0;x\ntwo\x07\nthree") == "one0;x\ntwo\nthree"


def evil_run(root: Path, name: str, **changes: Any) -> Path:
    """Make a failed run that says nothing without saying it with control characters."""
    state = STATE | {"reason": EVIL, "steps": [STEP | {"name": EVIL}, STEP | {"name": "b" + EVIL}]} | changes
    run = make_run(root, name, own=state, recipe=EVIL, profile=EVIL)
    error = {"rank": 0, "node": 0, "exit_code": 1, "time": 1.0}
    error |= dict.fromkeys(("host", "exception", "message", "hint", "traceback"), EVIL)
    (run / "attempts/0/errors/rank0000.json").write_text(json.dumps(error))
    (run / "attempts/0/rank0000.log").write_text(f"2026-01-01T00:00:00.000Z INFO {EVIL}\n")
    (run / "eval/b").mkdir(parents=True)
    (run / "eval/b/report.txt").write_text(f"score {EVIL}\n")
    return run


def test_runs_are_shown_in_plain_text(root: Path, call: Call) -> None:
    evil_run(root, "evil")
    shutil.copytree(root / "evil", root / f"other-{EVIL.replace('/', '')}"[:200])
    os.rename(make_run(root, "bytes"), os.fsencode(root) + b"/bytes-\xff\x9b2J")
    make_run(root, "odd", backend="local", own={"state": EVIL})
    listed = call("list")
    assert len(listed.out.splitlines()) == 5
    assert re.search(SHOWN, listed.out)
    several = [
        listed,
        call("status", "evil"),
        call("logs", "evil"),
        call("logs", "evil", "--follow"),
        call("status", "odd"),
    ]
    several += [call("status", "other"), call("resume", "evil"), call("cancel", "evil"), call("status", "no" + EVIL)]
    several += [call("list", "--json"), call("status", "evil", "--json"), call("list", "--state", EVIL)]
    for done in several:
        require_plain(done.out + done.err)
    assert {run["reason"] for run in json.loads(several[-3].out)} >= {EVIL}
    first = several[1].out.splitlines()[0]
    assert first.startswith("evil  FAILED  A")
    assert re.search(SHOWN, first)


def test_recipes_and_profiles_are_told_in_plain_text(root: Path, call: Call) -> None:
    here = Path.cwd()
    quoted = json.dumps(EVIL)
    train = "kind: train\nmodel: {language: {path: .}, vision: {path: .}}\ndata: {records: r.json, images: .}\n"
    several = []
    changes = (
        f"description: {quoted}", f"environment: {{X: {quoted}}}", f"{quoted}: 1", f"train: {{epochs: {quoted}}}",
        f"base: {quoted}", f"seed: {quoted}", f"needs: {{{quoted}: {quoted}}}", f"paths: {{a: {quoted}}}",
    )  # fmt: skip
    for number, more in enumerate(changes):
        recipe = here / f"{number}.yaml"
        recipe.write_text(f"{train}{more}\n")
        several += [call("recipes", str(recipe)), call("submit", str(recipe))]
        require_plain(call("render", str(recipe)).err)
    several += [call("submit", EVIL), call("recipes", EVIL), call("submit", "finetune", "--set", f"{EVIL}=1")]
    several += [call("submit", "finetune", "--name", EVIL), call("submit", "finetune", "--on", EVIL)]
    night = f"{{backend: local, runs: {quoted}, python: {quoted}}}"
    (here / "llavajob.yaml").write_text(f"profiles:\n  night: {night}\n")
    several += [call("profiles"), call("profiles", "--json"), call("doctor", "--on", "night")]
    (here / "llavajob.yaml").write_text(f"profiles:\n  {quoted}:\n    backend: {quoted}\n    {quoted}: 1\n")
    several += [call("profiles"), call("list")]
    for done in several:
        require_plain(done.out + done.err)


def test_progress_bars_show_plain_text(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, with colours of the program's own."""
    from launcher.store import run_at
    from launcher.watch import watch

    evil_run(root, "evil")
    leader, follower = os.openpty()
    run = run_at(root / "evil")
    assert run is not None
    with os.fdopen(follower, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        monkeypatch.setenv("TERM", "xterm")
        code = watch(run)
    shown = os.read(leader, 1 << 20).decode()
    os.close(leader)
    assert code == 1
    assert re.search(SHOWN, shown)
    for harmful in ("\x1b]", "\x1bc", "\x07", "\x08", "\x9b", "\x9d", "\u202e", "\u2066", "\x1b[31mD", "title"):
        assert harmful not in shown


def test_streams_that_lack_characters_or_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="iso-8859-1")
    monkeypatch.setattr(sys, "stdout", narrow)
    console.data("é 漢 \udcff")
    console.data_json({"loss": float("nan"), "name": "漢\x7f\x9b"})
    shown = narrow.buffer.getvalue()  # type: ignore[attr-defined]
    assert shown.startswith("é ? ?\n".encode("iso-8859-1"))
    assert json.loads(shown[6:]) == {"loss": None, "name": "漢\x7f\x9b"}
    require_plain(shown[6:].decode("ascii"))
    monkeypatch.setattr(sys, "stdout", None)
    console.data("nowhere")


def test_what_is_rendered_is_printed_byte_for_byte_into_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    console.data_as_sent("a\x1b[31m\n")
    assert capsys.readouterr().out == "a\x1b[31m\n"


def test_a_record_with_control_characters_keeps_them(root: Path, call: Call) -> None:
    make_run(root, "run", recipe=EVIL)
    assert json.loads(call("status", "run", "--json").out)["recipe"] == EVIL
    assert RECORD["recipe"] == "train"
