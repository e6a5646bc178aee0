"""Which rank failed first, and what its exit code means: read from the records that ranks and agents leave."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from launcher.run_folder import EXIT_BAD_REQUEST, EXIT_FINAL, EXIT_INTERRUPTED, RunFolder, read_json
from launcher.typed import fits

_MEANINGS = {
    1: "an error",
    EXIT_BAD_REQUEST: "the request was wrong",
    EXIT_FINAL: "an error that another try would meet again",
    126: "the command cannot be executed",
    127: "the command was not found",
    EXIT_INTERRUPTED: "interrupted, state saved",
}
_SIGNALS = {
    signal.SIGKILL: "killed, often because memory ran out (look for the kernel's out-of-memory message)",
    signal.SIGTERM: "told to end",
    signal.SIGSEGV: "segmentation fault in native code",
    signal.SIGBUS: "bus error, often because shared memory (/dev/shm) is full",
    signal.SIGABRT: "aborted by native code",
    signal.SIGUSR2: "ended by SIGUSR2 before it could handle it",
    signal.SIGINT: "interrupted from the keyboard",
}


@dataclass(frozen=True)
class Failure:
    """The first failing rank of an attempt."""

    rank: int | None
    node: int | None
    host: str
    exit_code: int | None
    exception: str
    message: str
    hint: str
    traceback: str
    final: bool
    """Whether another try would end the same way."""
    echo: bool = False
    """Whether the rank only met the end of another in a collective."""

    @property
    def summary(self) -> str:
        """One line: who, where, why."""
        who = "a task" if self.rank is None else f"rank {self.rank}"
        where = "" if self.node is None else f" on node {self.node}"
        host = f" ({self.host})" if self.host else ""
        by_signal = (self.exit_code or 0) < 0
        what = self.message.splitlines()[0] if self.message and not by_signal else decode_exit(self.exit_code)
        name = f"{self.exception}: " if self.exception and not self.final else ""
        return f"{who}{where}{host}: {name}{what}"


def decode_exit(code: int | None) -> str:
    """Say in words what an exit code means; negative codes and codes above 128 are signals."""
    if code is None:
        return "no exit code"
    if code in _MEANINGS:
        return f"exit code {code}: {_MEANINGS[code]}"
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number)
    except ValueError:
        return f"exit code {code}"
    return f"exit code {128 + number} ({name.name}): {_SIGNALS.get(name, 'ended by that signal')}"


def first_failure(folder: RunFolder, attempt: int) -> Failure | None:
    """Return the failure that the others followed from, or None when no rank left a record.

    A killed rank comes before exceptions, and an exception before the echo of it that peers see in a collective.
    """
    errors = folder.attempt(attempt) / "errors"
    found = [read_json(path) for path in sorted(errors.glob("rank*.json"))]
    records = [record for record in found if record is not None]
    return _failure(min(records, key=_order)) if records else None


def _order(record: dict[str, Any]) -> tuple[int, float]:
    echo = bool(record.get("collective"))
    told = record.get("exit_code") in (-signal.SIGTERM, EXIT_INTERRUPTED)
    moment: Any = record.get("time")
    return (2 if told else 1 if echo else 0, float(moment) if fits(moment, float) else 0.0)


def _failure(record: dict[str, Any]) -> Failure:
    return Failure(
        rank=_number(record, "rank"),
        node=_number(record, "node"),
        host=str(record.get("host") or ""),
        exit_code=_number(record, "exit_code"),
        exception=str(record.get("exception") or ""),
        message=str(record.get("message") or ""),
        hint=str(record.get("hint") or ""),
        traceback=str(record.get("traceback") or ""),
        final=bool(record.get("final")),
        echo=bool(record.get("collective")),
    )


def _number(record: dict[str, Any], key: str) -> int | None:
    value = record.get(key)
    return value if fits(value, int) else None
