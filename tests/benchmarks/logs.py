"""How fast logs are read, as ratios: ``python -m tests.benchmarks.logs [RANKS] [LINES]``.

A plain read of the same files in the same process is the measure, so that the figures hold on any machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from launcher.logs import Selection, follow, read
from launcher.run_folder import RunFolder
from tests.launcher.log_files import stamp, timed, write_rank


def main() -> None:
    ranks, lines = (int(text) for text in (sys.argv[1:] + ["512", "300"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rank in range(ranks):
            write_rank(folder, rank, _log(rank, lines))
        _report(folder, ranks)


def _log(rank: int, lines: int) -> Iterable[str]:
    for step in range(lines):
        own = step % 10 == 9
        yield timed(step + rank / 1000, f"rank {rank} holds {step} MiB" if own else f"step {step} loss 1.234 lr 2e-05")


def _report(folder: Path, ranks: int) -> None:
    paths = [RunFolder(folder).rank_log(0, rank) for rank in range(ranks)]
    total, plain = _timed(lambda: (line for path in paths for line in path.open("rb")))
    print(f"plain read: {total} lines of {ranks} ranks, {total / plain / 1e6:.2f} million lines a second")
    for title, select in _cases().items():
        shown, seconds = _timed(lambda select=select: read(folder, select))
        print(f"{title}: {shown} lines shown, {seconds / plain:.2f} x a plain read, {total / seconds:,.0f} lines/s")
    print(f"idle follow: {100 * _idle_share(folder):.2f} % of one processor")


def _cases() -> dict[str, Selection]:
    return {
        "merge and fold": Selection(),
        "grep": Selection(grep="holds 9 "),
        "tail 20": Selection(tail=20),
        "since, the last tenth": Selection(since=stamp(270)),
        "one rank": Selection(ranks=(0,)),
    }


def _timed(work: Callable[[], Iterable[object]]) -> tuple[int, float]:
    begun = time.perf_counter()
    count = sum(1 for _ in work())
    return count, time.perf_counter() - begun


def _idle_share(folder: Path) -> float:
    marks: list[tuple[float, float]] = []

    def wait(seconds: float) -> None:
        time.sleep(seconds)
        marks.append((time.monotonic(), time.process_time()))

    for _ in follow(folder, Selection(tail=0), is_over=lambda: len(marks) > 8, wait=wait):
        pass
    (begun, used), (ended, used_then) = marks[4], marks[-1]
    return (used_then - used) / (ended - begun)


if __name__ == "__main__":
    os.nice(5)
    main()
