"""All that is wrong with a benchmark's file, told at once and by place."""

from __future__ import annotations

from llava.errors import DataError

MOST_SHOWN = 50


def cannot_be_evaluated(path: str, problems: list[tuple[int, str]], unit: str, hint: str = "") -> DataError:
    """The error to raise.

    Args:
        path: the file.
        problems: (number of the place, what is wrong there).
        unit: what the numbers count: line, record.
        hint: what to do about it.
    """
    problems = sorted(problems)
    shown = [f"  {unit} {number}: {text}" for number, text in problems[:MOST_SHOWN]]
    more = len(problems) - len(shown)
    shown += [f"  ... and {more} more"] if more else []
    return DataError(f"{path} cannot be evaluated ({len(problems)} problems):\n" + "\n".join(shown), hint)
