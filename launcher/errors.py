"""Every error the launcher raises on purpose. The command line shows message and hint once and never a traceback.

LauncherError                 something failed                                   exit 1
├── RequestError              the request was wrong; nothing was started         exit 2
│   ├── RecipeError           problems in a recipe, a profile or a --set         exit 2
│   └── RunNotFound           no run, or several, go by that name                exit 2
├── Unreadable                a file of a run cannot be read or understood       exit 1
└── BackendError              the scheduler refused or did not answer            exit 1
    ├── NotAnswering          it is silent                                       exit 1
    └── SubmissionUnknown     a run may have been sent, and may not              exit 1
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from launcher.plain_text import one_line


class LauncherError(Exception):
    """What failed and what was seen, with what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RequestError(LauncherError):
    """The request was wrong; nothing was started."""

    exit_code = 2


class RunNotFound(RequestError):
    """No run, or several, go by that name."""


class Unreadable(LauncherError):
    """A file of a run cannot be read or understood."""


class BackendError(LauncherError):
    """The scheduler refused or did not answer."""


class NotAnswering(BackendError):
    """The scheduler is silent: what was asked for may or may not have happened."""


class SubmissionUnknown(BackendError):
    """A run may have been sent, and may not: the answer was lost. Its folder and record stay."""


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake: where it stands, what was seen and what is allowed."""

    where: str
    """``file:line``, ``--set`` or another place a person can go to."""
    message: str
    """What was seen and what is allowed."""

    def line(self) -> str:
        """The mistake for people; what was seen comes from outside and cannot begin a line of its own."""
        return one_line(f"{self.where}: {self.message}")


class RecipeError(RequestError):
    """Problems in a recipe, a profile or an override: all of them at once."""

    def __init__(self, problems: Sequence[Problem], hint: str = "") -> None:
        self.problems = list(dict.fromkeys(problems))
        lines = [problem.line() for problem in self.problems[:_MOST_SHOWN]]
        if len(self.problems) > _MOST_SHOWN:
            lines.append(f"and {len(self.problems) - _MOST_SHOWN} more")
        super().__init__("\n".join(lines), hint)


_MOST_SHOWN = 50
"""Problems that a message lists; nobody reads more of them."""
_LONGEST_WORD, _MOST_WORDS = 100, 2000
"""Beyond these a comparison takes seconds, and nobody mistyped it."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest allowed word, or nothing when none is near."""
    if len(word) > _LONGEST_WORD:
        return ""
    allowed = islice(allowed, _MOST_WORDS)
    match = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else ""
