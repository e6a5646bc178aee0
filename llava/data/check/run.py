"""``llava data check``: look at everything, show it, write it down, and fail where something stands in the way."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.data.check.benchmark import check_benchmark
from llava.data.check.findings import Section
from llava.data.check.progress import Bar
from llava.data.check.report import as_text, write
from llava.data.check.sources import Source, Training
from llava.data.check.training import check_training
from llava.errors import DataError
from llava.logs import LOG
from llava.plain_text import plain


def check(sources: Sequence[Source], report: Path, processes: int | None = None) -> None:
    """Check sources one after the other.

    Args:
        sources: what to check.
        report: folder for the report.
        processes: how many open pictures; None: one for each core that this process may use.

    Raises:
        DataError: something stands in the way; the report says what.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = processes or cores
    sections: list[Section] = []
    for source in sources:
        if isinstance(source, Training):
            sections += check_training(source, count, Bar)
        else:
            sections += check_benchmark(source, count, Bar)
    sys.stdout.write(plain(as_text(sections)))
    written = ", ".join(map(str, write(report, sections)))
    LOG.info("written: %s", written)
    grave = sum(section.grave for section in sections)
    if grave:
        things = "1 thing stands" if grave == 1 else f"{grave:,} things stand"
        raise DataError(f"{things} in the way, marked with ! above", f"All that was found is in {report}.")
