"""Writing logs as a run writes them, and reading folded lines back."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from launcher.run_folder import RunFolder

START = datetime(2026, 11, 23, 20, 0, 0, tzinfo=timezone.utc)


def stamp(seconds: float) -> str:
    moment = START + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def timed(seconds: float, text: str, level: str = "INFO") -> str:
    return f"{stamp(seconds)} {level} {text}"


def write_rank(folder: Path, rank: int, lines: Iterable[str], attempt: int = 0, stage: str = "") -> Path:
    return _write(RunFolder(folder).stage(stage).rank_log(attempt, rank), lines)


def write_node(folder: Path, node: int, lines: Iterable[str], attempt: int = 0, stage: str = "") -> Path:
    return _write(RunFolder(folder).stage(stage).node_log(attempt, node), lines)


def _write(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def append(path: Path, data: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data.encode() if isinstance(data, str) else data)


def unfold(lines: Iterable[str]) -> dict[str, list[str]]:
    """Give every rank and node its lines back, without their times."""
    said: dict[str, list[str]] = {}
    for line in lines:
        label, text = re.fullmatch(r"\[([^]]*)\] (.*)", line).groups()
        for who in _members(label):
            said.setdefault(who, []).append(without_time(text))
    return said


def without_time(line: str) -> str:
    return re.sub(r"^\S+Z ", "", line)


def _members(label: str) -> Iterator[str]:
    for kind, numbers in re.findall(r"(node|rank)s? ([0-9,-]+)", label):
        for part in filter(None, numbers.split(",")):
            low, _, high = part.partition("-")
            for number in range(int(low), int(high or low) + 1):
                yield f"{kind} {number}"


@contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Count the bytes that are read from files."""
    read, total = os.pread, 0

    def count(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal total
        data = read(descriptor, size, offset)
        total += len(data)
        return data

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", count)
        yield lambda: total
