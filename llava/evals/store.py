"""Where are answers kept, and which rows have one?

``answers/shardIIIIofNNNN.jsonl`` is only ever appended to, one line a row, one write a batch: a process killed at any
moment loses the batch in flight. Lines carry their fingerprint, so files of other shard counts and settings may lie
beside each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from llava.run_folder import read_lines, write_aside


@dataclass(frozen=True)
class Answer:
    """One line of an answers file."""

    index: int
    prediction: str
    fingerprint: str
    dtype: str
    """Number format that the weights really had (the fingerprint may say ``auto``)."""
    batch: int
    """Most rows in one generation; anything but 1 may flip a tie in 16 bits."""


class AnswerFile:
    """One shard's file, open for appending.

    Args:
        folder: the ``answers`` folder.
        shard: number of the shard, from 0.
        shards: of how many.
    """

    def __init__(self, folder: Path, shard: int, shards: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"shard{shard:04d}of{shards:04d}.jsonl"
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")  # closes the line that a killed writer left torn

    def add(self, answers: list[Answer]) -> None:
        """Append a batch in one write."""
        data = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers).encode()
        while data:
            data = data[os.write(self._descriptor, data) :]

    def flush(self) -> None:
        """Survive a power cut as well, not only a kill."""
        os.fsync(self._descriptor)

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.flush()
        os.close(self._descriptor)


def stored(folder: Path) -> Iterator[Answer]:
    """Every whole line of every answers file, whatever its shard count and fingerprint."""
    for path in sorted(folder.glob("shard*.jsonl")):
        for line in read_lines(path):
            try:
                yield Answer(**line)
            except TypeError:
                continue  # a line of another version of this program


def answered(folder: Path, fingerprint: str) -> set[int]:
    """Indexes of the rows that have an answer with this fingerprint."""
    return {answer.index for answer in stored(folder) if answer.fingerprint == fingerprint}


def remember_settings(folder: Path, fingerprint: str, settings: dict[str, Any]) -> None:
    """Write down what a fingerprint stands for, so that a person can see why old answers were not used."""
    path = folder / f"settings-{fingerprint}.json"
    if not path.exists():
        write_aside(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
