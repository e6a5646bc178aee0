"""What a step said last about itself: written where it runs, read by everybody, kept when its scheduler forgets.

steps/STEP.json     a gang, a task, a merge
steps/STEP-N.json   shard N of an array
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.errors import Unreadable
from launcher.reading import read_object
from launcher.run_folder import RunFolder, write_json
from launcher.typed import build


@dataclass
class Word:
    """What a step, or one shard of an array, said last about itself."""

    job_id: str = ""
    """The scheduler's name of the job that said it."""
    state: str = ""
    """One of the backend's states; empty: it has not started yet."""
    reason: str = ""
    attempt: int = 0
    fruitless: int = 0
    """Attempts in a row that brought no new step."""
    before: int = 0
    """Durable progress when the current attempt began."""
    started: float | None = None
    ended: float | None = None
    nodes: str = ""
    """The scheduler's names of its nodes."""


def word_file(run: RunFolder, step: str, member: int | None = None) -> Path:
    """Where a step, or shard ``member`` of one, keeps its word."""
    return run.root / "steps" / f"{step if member is None else f'{step}-{member}'}.json"


def read_word(run: RunFolder, step: str, member: int | None = None) -> Word:
    """Read what a step said last; nothing yet gives an empty word.

    Raises:
        Unreadable: what stands in the file's place cannot be understood.
    """
    path = word_file(run, step, member)
    return build(Word, read_object(path) or {}, path)


def last_word(run: RunFolder, step: str, member: int | None = None) -> Word:
    """What the step itself goes on from: a word that cannot be understood counts as none and will be replaced."""
    try:
        return read_word(run, step, member)
    except Unreadable:
        return Word()


def write_word(run: RunFolder, step: str, member: int | None, word: Word) -> None:
    """Replace what a step said last."""
    write_json(word_file(run, step, member), asdict(word))
