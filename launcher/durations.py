"""Durations as words for people."""

from __future__ import annotations

import time


def in_words(seconds: float | None) -> str:
    """Write a duration for people: ``48 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"


def age(moment: float) -> str:
    """Write how long ago something was."""
    return in_words(max(0.0, time.time() - moment))
