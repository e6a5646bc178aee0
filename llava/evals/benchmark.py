"""What makes a benchmark? How its file is read, how a row is asked, and what is reported of the answers.

Everything else (shards, answers, restarts, the proof that each row was answered once) is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llava.config import EvalConfig, EvalJob

if TYPE_CHECKING:
    from PIL import Image

    from llava.evals.merge import Merged


class Row(Protocol):
    """One question about one picture."""

    @property
    def index(self) -> int:
        """The row's number in its file; no other row has it."""

    @property
    def group(self) -> Hashable:
        """Equal for rows whose prompts begin alike, where they have the same picture."""

    @property
    def picture(self) -> Hashable:
        """Key of its picture: equal for rows with the same one."""


class Table(Protocol):
    """A checked benchmark file."""

    @property
    def path(self) -> str:
        """Where it was read from."""

    @property
    def md5(self) -> str:
        """Of the file, in hexadecimal digits."""

    @property
    def rows(self) -> Sequence[Row]:
        """In the file's order."""

    def open_picture(self, key: Any) -> Image.Image:
        """Decode one picture to RGB.

        Raises:
            DataError: the picture is cut off or damaged.
        """


@dataclass(frozen=True)
class Answered:
    """One model's answers to every row."""

    model: str
    folder: Path
    """Where its predictions go."""
    fingerprint: str
    merged: Merged


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, as the shared parts see it."""

    prompt_version: int
    """Part of the answers' fingerprint: raised with any change that alters a prompt."""
    read: Callable[[EvalConfig], Table]
    """Read and check the file; raises DataError with every problem."""
    question: Callable[[Any], str]
    """The user's whole turn for a row of the table, the picture's placeholder included."""
    report: Callable[[EvalJob, Any, list[Answered]], str]
    """Score and write down the answers of the model (and of its baseline, where there is one); returns what to show."""


def named(name: str) -> Benchmark:
    """The benchmark that ``eval.benchmark`` names."""
    from llava.evals.mmbench.benchmark import MMBENCH
    from llava.evals.refcoco.benchmark import REFCOCO

    return {"mmbench": MMBENCH, "refcoco": REFCOCO}[name]
