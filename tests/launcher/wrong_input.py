"""Preparing runs in this process, many a second, and what each comes to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from launcher.cli import _overrides
from launcher.errors import LauncherError
from launcher.explain import plan_text
from launcher.runs import Prepared, prepare

BASE = "kind: train\nmodel: {language: {path: .}, vision: {path: .}}\ndata: {records: records.json, images: .}\n"
"""A recipe of three lines; what a test adds stands in line 4."""
LONGEST_S = 5.0


@dataclass
class Outcome:
    """What preparing a run came to."""

    code: int
    message: str = ""
    prepared: Prepared | None = None


def outcome(recipe: str, *sets: str, on: str | None = None, nodes: int | None = None) -> Outcome:
    """Prepare a run as ``render`` does; anything but a LauncherError, and more than five seconds, fail the test."""
    if not Path("records.json").exists():
        Path("records.json").write_text("[]")
    start = time.process_time()
    try:
        prepared = prepare(recipe, on, None, _overrides(nodes, None, list(sets)))
        plan_text(prepared)
        result = Outcome(0, prepared=prepared)
    except LauncherError as error:
        result = Outcome(error.exit_code, error.message)
    took_s = time.process_time() - start
    assert took_s < LONGEST_S, f"took {took_s:.1f} s"
    return result


def of_text(extra: str, *sets: str, on: str | None = None, nodes: int | None = None) -> Outcome:
    """Prepare the small recipe with more lines."""
    Path("t.yaml").write_text(BASE + extra, encoding="utf-8")
    return outcome("t.yaml", *sets, on=on, nodes=nodes)


def of_profile(text: str) -> Outcome:
    """Prepare the small recipe on the profile ``night`` of a file."""
    Path("llavajob.yaml").write_text(text, encoding="utf-8")
    return of_text("", on="night")
