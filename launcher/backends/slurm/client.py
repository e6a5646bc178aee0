"""Asking Slurm: its commands, their answers as values, and silence told apart from refusal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from launcher import patience
from launcher.errors import BackendError, NotAnswering

_LONGEST_CALL_S = 60.0
_SILENCE = (
    "unable to contact slurm controller", "socket timed out", "zero bytes were transmitted", "connection refused",
    "temporarily unable to accept", "unable to connect", "standby mode", "communication connection failure",
    "connection timed out", "slow to respond",
)  # fmt: skip
_NO_NODES = "None assigned"
_NO_ACCOUNTING = "accounting storage is disabled"


def is_silence(words: str) -> bool:
    """Tell whether an error means that nobody answered, rather than that Slurm said no."""
    return any(sign in words.lower() for sign in _SILENCE)


def plain_words(text: str) -> str:
    """The message in what a Slurm command printed: without the command's name, in one line."""
    lines = [line.split("error:", 1)[-1].strip() for line in text.strip().splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines)) or "no message"


def ask(*command: str) -> str:
    """Run a Slurm command and return what it prints.

    Raises:
        NotAnswering: the controller, or the accounting, does not answer.
        BackendError: the command is not there, or Slurm refused, with its own words.
    """
    environment = {**os.environ, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment, timeout=_LONGEST_CALL_S,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        hint = "Run this on a login node of the cluster, with Slurm's commands on PATH; or elsewhere: --on PROFILE"
        raise BackendError(f"{command[0]} is not on PATH: this machine is no part of a Slurm cluster", hint) from None
    except subprocess.TimeoutExpired:
        raise NotAnswering(f"Slurm does not answer ({command[0]} took more than {_LONGEST_CALL_S:.0f} s)") from None
    if done.returncode == 0:
        return done.stdout
    words = plain_words(done.stderr or done.stdout)
    if is_silence(words):
        raise NotAnswering(f"Slurm does not answer ({words})", "It may be restarting. Try again in a minute.")
    raise BackendError(f"{command[0]} refused: {words}")


def insist(
    *command: str, patience_s: float, say: Callable[[str], None] = lambda text: None, pause_s: float = 3.0
) -> str:
    """Run a command that may be repeated safely, again and again while Slurm is silent.

    Raises:
        NotAnswering: still silent when the patience ended.
        BackendError: as ``ask``.
    """
    return patience.insist(lambda: ask(*command), patience_s, say, pause_s)


@dataclass(frozen=True)
class Foreign:
    """One job, or one member of an array, in Slurm's words."""

    state: str
    reason: str = ""
    start: float | None = None
    """When it started; for one that waits, when Slurm expects it to start."""
    end: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    nodes: str = ""


@dataclass
class Answer:
    """What Slurm knows of some jobs. A job that it does not know is missing."""

    jobs: dict[str, Foreign] = field(default_factory=dict)
    trouble: str = ""
    """Why the answer may be incomplete."""

    def job(self, one: str) -> Foreign | None:
        """What Slurm knows of a job, or of a member of an array."""
        number = one.split("_")[0]
        # The queue has those that ended before they started under the array's number, the accounting in a row.
        return self.jobs.get(one) or self.jobs.get(number) or self.jobs.get(f"{number}_*")


_ACTIVE = frozenset({
    "PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "RESIZING", "REQUEUED", "REQUEUE_FED",
    "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT", "SIGNALING", "STAGE_OUT", "STOPPED",
})  # fmt: skip


def query(ids: Sequence[str]) -> Answer:
    """Ask about jobs in at most two calls, whatever their number: the queue, then the accounting for what left it."""
    answer = Answer()
    if not ids:
        return answer
    numbers = sorted({one.split("_")[0] for one in ids}, key=int)
    try:
        queued = _squeue(numbers)
    except BackendError as error:
        queued, answer.trouble = {}, error.message
    active = {one: job for one, job in queued.items() if job.state in _ACTIVE}
    gone = sorted({one.split("_")[0] for one in ids if one not in active}, key=int)
    accounted = _sacct(gone) if gone else {}
    # The accounting is a second or two behind: what the queue says of a job in it is newer.
    answer.jobs = {**{one: job for one, job in queued.items() if one not in active}, **accounted, **active}
    return answer


def _squeue(numbers: Sequence[str]) -> dict[str, Foreign]:
    layout = "%i|%T|%r|%S|%e|%N"
    try:
        text = ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(numbers)}", "-o", layout)
    except NotAnswering:
        raise
    except BackendError as error:
        if "invalid job id" in error.message.lower():
            return {}
        raise
    jobs = {}
    for line in text.splitlines():
        one, state, reason, start, end, nodes = line.split("|", 5)
        jobs[_key(one)] = Foreign(state, "" if reason == "None" else reason, _moment(start), _moment(end), nodes=nodes)
    return jobs


def _sacct(numbers: Sequence[str]) -> dict[str, Foreign]:
    """What the accounting knows; nothing where there is none or it does not answer."""
    fields = "JobID,State,ExitCode,Start,End,NodeList"
    try:
        text = ask("sacct", "-X", "--noheader", "--parsable2", f"--jobs={','.join(numbers)}", f"--format={fields}")
    except BackendError:
        return {}
    jobs = {}
    for line in text.splitlines():
        one, state, code, start, end, nodes = line.split("|", 5)
        exit_code, _, by_signal = code.partition(":")
        if not state:
            continue
        jobs[_key(one)] = Foreign(
            state.split()[0], state.partition(" ")[2], _moment(start), _moment(end), int(exit_code or 0),
            int(by_signal or 0) or None, "" if nodes == _NO_NODES else nodes,
        )  # fmt: skip
    return jobs


def _key(one: str) -> str:
    """Members of an array that never started stand in one row: ``14_[2-7%4]``."""
    return f"{one.split('_')[0]}_*" if "[" in one else one


def _moment(text: str) -> float | None:
    return float(text) if text.isdigit() and text != "0" else None


def accounting_is_on() -> bool:
    """Tell whether this cluster keeps accounts that sacct can read."""
    try:
        ask("sacct", "-X", "--noheader", "--jobs=1")
    except BackendError:
        return False
    return True


def find_submitted(name: str, since: float) -> list[str]:
    """Find the jobs that a submission made before its answers were lost, by their name and age."""
    text = ask("squeue", "--me", "--noheader", "--states=all", f"--name={name}", "-o", "%F|%V")
    rows = [line.split("|") for line in text.splitlines()]
    return [number for number, submitted in rows if (_moment(submitted) or 0.0) >= since - 2.0]
