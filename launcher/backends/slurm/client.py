"""Asking Slurm: its commands, their answers as values, and silence told apart from refusal."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from launcher import patience
from launcher.backends.slurm.client_environment import client_environment
from launcher.backends.slurm.identity import Owner
from launcher.backends.slurm.named_jobs import checked_ids, is_id, require_named
from launcher.errors import BackendError, NotAnswering

LONGEST_CALL_S = 60.0
_SILENCE = (
    "unable to contact slurm controller", "socket timed out", "zero bytes were transmitted", "connection refused",
    "temporarily unable to accept", "unable to connect", "standby mode", "communication connection failure",
    "connection timed out", "slow to respond", "message receive failure", "message send failure", "broken pipe",
    "unexpected message received", "connection reset",
)  # fmt: skip
_NO_NODES = "None assigned"
_SLACK_S = 2.0


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
        BackendError: the command is not there, it names no job and so would mean all, or Slurm refused, with its own
            words.
    """
    require_named(command)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=client_environment(),
            timeout=LONGEST_CALL_S, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise not_on_path(command[0]) from None
    except subprocess.TimeoutExpired:
        raise too_slow(command[0]) from None
    return answer_of(command[0], done)


def not_on_path(command: str) -> BackendError:
    hint = "Run this on a login node of the cluster, with Slurm's commands on PATH; or elsewhere: --on PROFILE"
    return BackendError(f"{command} is not on PATH: this machine is no part of a Slurm cluster", hint)


def too_slow(command: str) -> NotAnswering:
    return NotAnswering(f"Slurm does not answer ({command} took more than {LONGEST_CALL_S:.0f} s)")


def answer_of(command: str, done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command that has ended printed.

    Raises:
        NotAnswering: nobody answered it.
        BackendError: Slurm refused, with its own words.
    """
    if done.returncode == 0:
        return done.stdout
    words = plain_words(done.stderr or done.stdout)
    if is_silence(words):
        raise NotAnswering(f"Slurm does not answer ({words})", "It may be restarting. Try again in a minute.")
    raise BackendError(f"{command} refused: {words}")


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
    name: str = ""
    """Empty: not said."""
    trace: str = ""
    """Its script and its comment, or the command line that made it; empty: not said."""


@dataclass
class Answer:
    """What Slurm knows of some jobs. A job that it does not know is missing."""

    jobs: dict[str, Foreign] = field(default_factory=dict)
    trouble: str = ""
    """Why the answer may be incomplete."""
    not_here: str = ""
    """Why a job that is missing may go on nevertheless: it lives elsewhere, or its number is another job's here."""

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
        in_queue = queued(numbers)
    except BackendError as error:
        in_queue, answer.trouble = {}, error.message
    active = {one: job for one, job in in_queue.items() if job.state in _ACTIVE}
    gone = sorted({one.split("_")[0] for one in ids if one not in active}, key=int)
    accounted = {}
    if gone:
        try:
            accounted = _sacct(gone)
        except NotAnswering as error:
            answer.not_here = f"{error.message}; how it ended is not known yet"
    # The accounting is a second or two behind: what the queue says of a job in it is newer.
    answer.jobs = {**{one: job for one, job in in_queue.items() if one not in active}, **accounted, **active}
    return answer


def queued(numbers: Sequence[str]) -> dict[str, Foreign]:
    """What the queue has of jobs, those included that ended a short while ago.

    Raises:
        NotAnswering: the controller is silent.
    """
    layout = "%i|%T|%r|%S|%e|%N|%j|%o|%k"
    named = f"--jobs={','.join(checked_ids(numbers))}"
    try:
        text = ask("squeue", "--noheader", "--array", "--states=all", named, "-o", layout)
    except NotAnswering:
        raise
    except BackendError as error:
        if "invalid job id" in error.message.lower():
            return {}
        raise
    jobs = {}
    for line in text.splitlines():
        one, state, reason, start, end, nodes, name, trace = _fields(line, 8)
        if not is_id(one.partition("_")[0]):
            continue  # "CLUSTER: name", above the jobs of a cluster that was asked for by name
        jobs[_key(one)] = Foreign(
            state, "" if reason == "None" else reason, _moment(start), _moment(end), nodes=nodes, name=name, trace=trace
        )
    return jobs


def _fields(line: str, count: int) -> list[str]:
    """The fields of a line; what is beyond their number belongs to the last, what is not there is empty."""
    found = line.split("|", count - 1)
    return found + [""] * (count - len(found))


def _sacct(numbers: Sequence[str]) -> dict[str, Foreign]:
    """What the accounting knows; nothing where there is none.

    Raises:
        NotAnswering: there is one, and it does not answer.
    """
    fields = "JobID,State,ExitCode,Start,End,NodeList,JobName"
    named = f"--jobs={','.join(checked_ids(numbers))}"
    call = ("sacct", "-X", "--noheader", "--parsable2", named)
    try:
        text = ask(*call, f"--format={fields},SubmitLine")
    except NotAnswering:
        raise
    except BackendError as error:
        if "invalid field" not in error.message.lower():
            return {}
        # Before 21.08 the accounting did not keep command lines.
        try:
            text = ask(*call, f"--format={fields}")
        except NotAnswering:
            raise
        except BackendError:
            return {}
    jobs = {}
    for line in text.splitlines():
        one, state, code, start, end, nodes, name, trace = _fields(line, 8)
        exit_code, _, by_signal = code.partition(":")
        if not state:
            continue
        jobs[_key(one)] = Foreign(
            state.split()[0], state.partition(" ")[2], _moment(start), _moment(end), int(exit_code or 0),
            int(by_signal or 0) or None, "" if nodes == _NO_NODES else nodes, name, trace,
        )  # fmt: skip
    return jobs


def _key(one: str) -> str:
    """Members of an array that never started stand in one row: ``14_[2-7%4]``."""
    return f"{one.split('_')[0]}_*" if "[" in one else one


def _moment(text: str) -> float | None:
    return float(text) if text.isdigit() and text != "0" else None


def find_submitted(name: str, owner: Owner, ticket: str, since: float = 0.0) -> list[str]:
    """Find the jobs that one submission of a step made, whose answer was lost.

    Args:
        name: of the job.
        owner: the run that it belongs to.
        ticket: of the submission.
        since: for a run without an id: when the submission began.
    """
    text = ask("squeue", "--me", "--noheader", "--states=all", f"--name={name}", "-o", "%F|%V|%o|%k")
    found = []
    for line in text.splitlines():
        number, submitted, trace = _fields(line, 3)
        if not is_id(number):
            continue
        if trace and owner.run_id:
            mine = owner.sent(ticket, trace)
        else:
            mine = (_moment(submitted) or 0.0) >= since - _SLACK_S and owner.owns(name, name, trace)
        if mine:
            found.append(number)
    # An array that waits has a line for each part of it.
    return list(dict.fromkeys(found))
