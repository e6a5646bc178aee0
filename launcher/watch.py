"""Staying with a run: its log lines, or progress bars on a terminal, and its result as the exit code."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from launcher import console
from launcher.asking import attempt_to
from launcher.backends.base import ENDED, SUCCEEDED, get_backend
from launcher.durations import in_words
from launcher.errors import RequestError
from launcher.explain import failure_lines, next_commands
from launcher.logs import Selection, explain_nothing, follow, read
from launcher.lookout import Lookout, without_countdown
from launcher.plain_text import one_line
from launcher.progress import Progress
from launcher.status import RunStatus, reports, stage_progress, statuses
from launcher.store import Run

EXIT_STOPPED_FOLLOWING = 130
_POLL_S = 0.5


@dataclass(frozen=True)
class LogChoice:
    """Which lines ``llavajob logs`` shows."""

    ranks: list[int]
    nodes: list[int]
    attempt: int | None
    stages: list[str]
    tail: int | None
    grep: str | None
    since: str | None
    shards: list[int] = field(default_factory=list)


def show_logs(run: Run, choice: LogChoice, stay: bool) -> int:
    """Print a run's log lines; with stay, until the run ends. Return the exit code.

    Raises:
        RequestError: a pattern or a time that cannot be understood.
    """
    if choice.shards:
        choice = _of_shards(run, choice)
    try:
        chosen = Selection(
            ranks=tuple(choice.ranks), nodes=tuple(choice.nodes), attempt=choice.attempt, tail=choice.tail,
            grep=choice.grep, since=choice.since, stages=tuple(choice.stages),
        )  # fmt: skip
    except ValueError as error:
        raise RequestError(str(error)) from None
    # Nobody can tell when a run ends that cannot be understood.
    if run.odd or not stay:
        for trouble in _fetch_logs(run):
            console.say(trouble)
        printed = _print(read(run.folder.root, chosen, colour=console.wants_colour(sys.stdout)))
        if not printed:
            console.say(f"No log lines fit: {explain_nothing(run.folder.root, chosen)}")
        return 0
    try:
        with Lookout(run) as lookout:
            _print(follow(run.folder.root, chosen, is_over=lookout.is_over, wait=time.sleep))
    except KeyboardInterrupt:
        return _stopped_following(run)
    return _result(run)


def _fetch_logs(run: Run) -> list[str]:
    """Bring the logs here; of a run that cannot be understood, those that are here are shown."""
    if run.odd:
        return [f"{run.name}: {run.odd}; what its folder holds is shown"]
    found = attempt_to(lambda: get_backend(run.backend).fetch_logs(run))
    return [f"{run.name}: {found}; what its folder holds is shown"] if isinstance(found, str) else found


def watch(run: Run, quiet_stdout: bool = False) -> int:
    """Stay with a run until it ends: progress bars on a terminal, log lines elsewhere."""
    try:
        if sys.stderr.isatty():
            _bars(run)
        else:
            with Lookout(run) as lookout:
                lines = follow(run.folder.root, Selection(), is_over=lookout.is_over, wait=time.sleep)
                _print(lines, to_people=quiet_stdout)
    except KeyboardInterrupt:
        return _stopped_following(run)
    return _result(run, quiet_stdout)


def _print(lines: Iterable[str], to_people: bool = False) -> int:
    count = 0
    for line in lines:
        count += 1
        console.say(line) if to_people else console.data_line(line)
    return count


def _of_shards(run: Run, choice: LogChoice) -> LogChoice:
    """A shard's log is a rank's and a node's of an evaluation."""
    kinds = {name: values.get("kind") for name, values in (run.record.get("values") or {}).items()}
    stages = [name for name, kind in kinds.items() if kind == "eval" and name]
    if not stages and run.record.get("kind") != "eval":
        raise RequestError(f"{run.name} evaluates nothing, so it has no shards", "Ranks of a training: --rank R")
    return replace(choice, ranks=choice.shards, nodes=choice.shards, stages=choice.stages or stages)


def _stopped_following(run: Run) -> int:
    console.say(f"\nStopped following; {run.name} goes on. Follow: llavajob logs {run.name} --follow")
    console.say(f"To end it: llavajob cancel {run.name}")
    return EXIT_STOPPED_FOLLOWING


def _result(run: Run, quiet_stdout: bool = False) -> int:
    status = statuses([run])[0]
    for text in reports(run.folder.root):
        console.say(text) if quiet_stdout else console.data(text)
    took = f" in {in_words(status.ended - status.created)}" if status.ended else ""
    reason = f": {one_line(status.reason)}" if status.reason else ""
    console.say(f"{run.name} {status.state.lower()}{took}{reason}")
    console.say(f"Its files: {status.dir}")
    if status.state == SUCCEEDED:
        return 0
    for line in [*failure_lines(status), *next_commands(status)]:
        console.say(f"  {line}")
    return 1


def _bars(run: Run) -> None:
    """Show one progress bar per step until the run ends."""
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars

    layout = (
        SpinnerColumn(finished_text="+"), TextColumn("{task.description}", markup=False), BarColumn(),
        TextColumn("{task.fields[words]}", markup=False), TextColumn("{task.fields[took]}", markup=False),
    )  # fmt: skip
    with Bars(*layout, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}
        while True:
            status = statuses([run])[0]
            _update(bars, tasks, status, run)
            if status.state in ENDED:
                return
            time.sleep(_POLL_S)


def _update(bars: Any, tasks: dict[str, Any], status: RunStatus, run: Run) -> None:
    progress = stage_progress(run, status.stages)
    for step in status.stages:
        if step.name not in tasks:
            tasks[step.name] = bars.add_task(one_line(step.name), total=None, words="", took="")
        done, words = _bar_words(step.state, progress[step.stage], step.kind == "merge")
        total = None if step.state not in ENDED and done is None else 1.0
        completed = 1.0 if step.state == SUCCEEDED else done or 0.0
        took = in_words((step.ended or time.time()) - step.started) if step.started else ""
        bars.update(tasks[step.name], total=total, completed=completed, words=words, took=took)
    reason = without_countdown(status.reason)
    if reason and tasks.get("reason") != reason:
        bars.console.print(one_line(status.reason), markup=False, highlight=False)
    tasks["reason"] = reason


def _bar_words(state: str, progress: Progress, is_merge: bool) -> tuple[float | None, str]:
    if state == "PENDING":
        return None, ""
    if is_merge or not progress.total_steps or progress.step is None:
        return None, state.lower()
    words = [f"{progress.step}/{progress.total_steps}"]
    if progress.loss is not None:
        words.append(f"loss {progress.loss:.3f}")
    if progress.samples_per_s:
        words.append(f"{progress.samples_per_s:.0f} samples/s")
    return progress.step / progress.total_steps, ", ".join(words)
