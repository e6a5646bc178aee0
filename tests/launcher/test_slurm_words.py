"""What Slurm says, as the launcher understands it: states, reasons, silence, answers that a real one gives rarely."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.base import ENDED, UNKNOWN, StepState
from launcher.backends.base import STATES as OURS
from launcher.backends.slurm import client
from launcher.backends.slurm.client import is_silence, plain_words, query
from launcher.backends.slurm.files import Job, Jobs
from launcher.backends.slurm.states import open_ids, run_state
from launcher.backends.slurm.words import ENDS, STATES, why_pending
from launcher.errors import BackendError, NotAnswering
from launcher.run_folder import RunFolder
from launcher.step_word import Word, write_word
from tests.shell import Shell

Write = Callable[..., str]
# man squeue, JOB STATE CODES. COMPLETING may be the end of any of them.
CODES = [
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "COMPLETING", "CONFIGURING", "DEADLINE", "FAILED", "NODE_FAIL",
    "OUT_OF_MEMORY", "PENDING", "PREEMPTED", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "RESV_DEL_HOLD",
    "REVOKED", "RUNNING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED", "TIMEOUT",
]  # fmt: skip
DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
NO_ACCOUNTING = "Slurm accounting storage is disabled"
UNHEARD = "slurm_load_jobs error: Invalid job id specified"


def test_every_state_of_slurm_has_one_of_ours() -> None:
    assert set(CODES) - set(STATES) == {"COMPLETING"}
    assert set(STATES.values()) <= set(OURS) - {UNKNOWN}
    assert {code for code in CODES if STATES.get(code) not in ENDED} == client._ACTIVE
    assert all(STATES[code] in ("FAILED", "CANCELLED") for code in ENDS)


@pytest.mark.parametrize(
    ("reason", "in_s", "again", "words"),
    [
        ("Resources", None, False, "waits for free nodes (Resources)"),
        ("Resources", 97, False, "waits for free nodes (Resources); expected to start in 1 min 37 s"),
        ("BeginTime", 97, True, "requeued, starts again in 1 min 37 s (BeginTime)"),
        ("BeginTime", 30, False, "starts in 30 s (BeginTime)"),
        ("BeginTime", None, True, "requeued, starts again later (BeginTime)"),
        ("Priority", None, True, "requeued; jobs of higher priority come first (Priority)"),
        ("None", None, False, ""),
        ("", None, True, "requeued"),
        ("SomethingNew", None, False, "waits (SomethingNew)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:node7", None, False,
            "a node it asks for is down or reserved (ReqNodeNotAvail, UnavailableNodes:node7)",
        ),
    ],
)  # fmt: skip
def test_why_a_job_waits(
    monkeypatch: pytest.MonkeyPatch, reason: str, in_s: float | None, again: bool, words: str
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert why_pending(reason, None if in_s is None else 1000.0 + in_s, again) == words


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("sbatch: error: Batch job submission failed: Invalid qos", "Batch job submission failed: Invalid qos"),
        ("sbatch: error: A\nsbatch: error: B\n", "A; B"),
        ("sbatch: error: A\nsbatch: error: A\n", "A"),
        ("", "no message"),
        ("\n  \n", "no message"),
    ],
)
def test_slurms_own_words_without_its_commands(said: str, words: str) -> None:
    assert plain_words(said) == words


@pytest.mark.parametrize(
    ("words", "silent"),
    [
        ("Unable to contact slurm controller (connect failure)", True),
        ("Socket timed out on send/recv operation", True),
        ("Zero Bytes were transmitted or received", True),
        ("Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("Connection refused", True),
        ("Slurm backup controller in standby mode", True),
        ("Invalid job id specified", False),
        ("Invalid partition name specified", False),
        ("Access/permission denied", False),
        (NO_ACCOUNTING, False),
    ],
)
def test_silence_is_told_from_refusal(words: str, silent: bool) -> None:
    assert is_silence(words) is silent


# Asking about jobs


class Fake:
    """The process boundary: what each of Slurm's commands prints, or says and fails with."""

    def __init__(self, **answers: str | Exception) -> None:
        self.answers = answers
        self.calls: list[list[str]] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(list(command))
        assert options["timeout"] and options["stdin"] == subprocess.DEVNULL
        answer = self.answers[command[0]]
        if isinstance(answer, OSError | subprocess.TimeoutExpired):
            raise answer
        if isinstance(answer, Exception):
            return subprocess.CompletedProcess(command, 1, "", f"{answer}\n")
        return subprocess.CompletedProcess(command, 0, answer, "")

    @property
    def commands(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fake]:
    def make(**answers: str | Exception) -> Fake:
        made = Fake(**answers)
        monkeypatch.setattr(subprocess, "run", made)
        return made

    return make


def test_one_call_for_a_thousand_jobs(fake: Callable[..., Fake]) -> None:
    ids = [str(n) for n in range(1, 1001)]
    made = fake(squeue="".join(f"{n}|RUNNING|None|1000|2000|node1\n" for n in ids))
    answer = query(ids)
    assert made.commands == ["squeue"] and len(answer.jobs) == 1000 and answer.trouble == ""
    assert f"--jobs={','.join(ids)}" in made.calls[0]


def test_nothing_is_asked_about_nothing(fake: Callable[..., Fake]) -> None:
    made = fake()
    assert query([]).jobs == {} and made.calls == []


def test_jobs_that_left_the_queue_are_looked_up_together_in_the_accounting(fake: Callable[..., Fake]) -> None:
    made = fake(
        squeue="1|RUNNING|None|1000|2000|node1\n",
        sacct="2|COMPLETED|0:0|1000|1010|node[1-2]\n3|CANCELLED by 1000|0:15|None|1010|None assigned\n",
    )
    answer = query(["1", "2", "3"])
    assert made.commands == ["squeue", "sacct"] and "--jobs=2,3" in made.calls[1]
    assert answer.jobs["1"].state == "RUNNING" and answer.jobs["2"].nodes == "node[1-2]"
    three = answer.jobs["3"]
    assert (three.state, three.reason, three.start, three.signal, three.nodes) == (
        "CANCELLED", "by 1000", None, 15, "",
    )  # fmt: skip


def test_the_queue_knows_better_than_an_accounting_that_is_behind(fake: Callable[..., Fake]) -> None:
    fake(squeue="1|RUNNING|None|1000|2000|node1\n", sacct="1|PENDING|0:0|None|None|None assigned\n")
    assert query(["1", "2"]).jobs["1"].state == "RUNNING"


def test_a_silent_controller_is_said_and_the_accounting_still_asked(fake: Callable[..., Fake]) -> None:
    fake(squeue=Exception(DOWN), sacct="1|COMPLETED|0:0|1000|1010|node1\n")
    answer = query(["1", "2"])
    assert "does not answer" in answer.trouble and set(answer.jobs) == {"1"}


def test_a_command_that_hangs_counts_as_silence(fake: Callable[..., Fake]) -> None:
    fake(squeue=subprocess.TimeoutExpired("squeue", 60), sacct=subprocess.TimeoutExpired("sacct", 60))
    answer = query(["1"])
    assert "squeue took more than 60 s" in answer.trouble and answer.jobs == {}


def test_no_accounting_and_jobs_that_the_queue_forgot(fake: Callable[..., Fake]) -> None:
    fake(squeue=Exception(UNHEARD), sacct=Exception(NO_ACCOUNTING))
    answer = query(["1"])
    assert (answer.jobs, answer.trouble) == ({}, "")


def test_members_that_did_not_start_stand_in_one_row(fake: Callable[..., Fake]) -> None:
    fake(
        squeue="7_0|RUNNING|None|1000|2000|node1\n7_1|PENDING|JobArrayTaskLimit|None|None|\n",
        sacct="8_0|COMPLETED|0:0|1000|1010|node1\n8_[1-5%2]|CANCELLED by 0|0:0|None|1010|None assigned\n",
    )
    answer = query(["7_0", "7_1", *(f"8_{n}" for n in range(6))])
    found = {one: job.state for one in ("7_0", "7_1", "8_0", "8_1", "8_5") if (job := answer.job(one))}
    assert found == {
        "7_0": "RUNNING", "7_1": "PENDING", "8_0": "COMPLETED", "8_1": "CANCELLED", "8_5": "CANCELLED",
    }  # fmt: skip
    assert answer.job("9_0") is None


def test_members_that_were_cancelled_stand_below_the_arrays_number_in_the_queue(fake: Callable[..., Fake]) -> None:
    """Where the accounting is off, or still says that they wait."""
    for accounting in (Exception(NO_ACCOUNTING), "7_[1-5%2]|PENDING|0:0|None|None|None assigned\n"):
        fake(squeue="7_0|COMPLETED|None|1000|1010|node1\n7|CANCELLED|JobArrayTaskLimit|1000|1010|\n", sacct=accounting)
        answer = query([f"7_{n}" for n in range(6)])
        assert [answer.job(f"7_{n}").state for n in (0, 1, 5)] == ["COMPLETED", "CANCELLED", "CANCELLED"]  # type: ignore[union-attr]


def test_without_slurms_commands_there_is_one_message(fake: Callable[..., Fake]) -> None:
    fake(squeue=FileNotFoundError("squeue"))
    with pytest.raises(BackendError, match="squeue is not on PATH") as caught:
        client.ask("squeue")
    assert "login node" in caught.value.hint


def test_who_insists_asks_until_the_patience_ends(fake: Callable[..., Fake]) -> None:
    made, said = fake(scancel=Exception(DOWN)), list[str]()
    with pytest.raises(NotAnswering):
        client.insist("scancel", "1", patience_s=0.05, say=said.append, pause_s=0.01)
    assert len(made.calls) > 2 and len(said) == len(made.calls) - 1
    assert all("trying again" in line for line in said)


def test_who_insists_takes_a_refusal_at_once(fake: Callable[..., Fake]) -> None:
    made = fake(scancel=Exception("scancel: error: Access/permission denied"))
    with pytest.raises(BackendError, match="scancel refused: Access/permission denied"):
        client.insist("scancel", "1", patience_s=60)
    assert len(made.calls) == 1


# A run's state from its files and Slurm's answer


def run_of(folder: Path, submitted: float = 0.0) -> tuple[RunFolder, Jobs]:
    """A run of one step whose job is number 1."""
    return RunFolder(folder), Jobs([Job(StepState("train", "", "gang"), "1")], submitted)


@pytest.mark.parametrize(
    ("word", "answer", "state", "words"),
    [
        ("RUNNING", client.Answer(trouble="Slurm does not answer"), "RUNNING", "Slurm does not answer"),
        ("", client.Answer(trouble="Slurm does not answer"), "PENDING", "Slurm does not answer"),
        ("RUNNING", client.Answer(), "FAILED", "job 1 left Slurm without saying how it ended"),
        ("", client.Answer(), "FAILED", "job 1 left the queue before it started"),
        ("SUCCEEDED", client.Answer(trouble="Slurm does not answer"), "SUCCEEDED", ""),
        ("RUNNING", client.Answer({"1": client.Foreign("NEW_STATE")}), "UNKNOWN", "Slurm says NEW_STATE"),
        ("RUNNING", client.Answer({"1": client.Foreign("COMPLETING")}), "RUNNING", "ending"),
        ("RUNNING", client.Answer({"1": client.Foreign("OUT_OF_MEMORY")}), "FAILED", "slurm.mem"),
        ("RUNNING", client.Answer({"1": client.Foreign("NODE_FAIL", nodes="node7")}), "FAILED", "a node broke"),
        ("", client.Answer({"1": client.Foreign("FAILED", exit_code=127)}), "FAILED", "the command was not found"),
        ("", client.Answer({"1": client.Foreign("RUNNING")}), "STARTING", ""),
        ("RUNNING", client.Answer({"1": client.Foreign("PENDING", "BeginTime")}), "REQUEUED", "starts again later"),
        ("", client.Answer({"1": client.Foreign("PENDING", "Priority")}), "PENDING", "higher priority"),
    ],
)
def test_a_state_comes_from_the_job_itself_and_then_from_slurm(
    tmp_path: Path, word: str, answer: client.Answer, state: str, words: str
) -> None:
    run, jobs = run_of(tmp_path)
    if word:
        write_word(run, "train", None, Word("1", word))
    seen = run_state(run, jobs, answer)
    assert seen.state == state and words in seen.reason, seen.reason


@pytest.mark.parametrize(
    ("word", "ended_s_ago", "state", "words"),
    [
        ("", 600, "FAILED", "its batch script ended with exit code 0 before its work was done"),
        ("RUNNING", 600, "FAILED", "before its work was done"),
        ("RUNNING", 5, "RUNNING", "ending"),
        ("SUCCEEDED", 5, "SUCCEEDED", ""),
        ("FAILED", 600, "FAILED", ""),
    ],
)
def test_only_a_job_that_said_so_has_succeeded(
    tmp_path: Path, word: str, ended_s_ago: float, state: str, words: str
) -> None:
    """A set-up line such as ``exec true`` ends a batch script with exit code 0, and nothing was ever started."""
    run, jobs = run_of(tmp_path)
    if word:
        write_word(run, "train", None, Word("1", word))
    answer = client.Answer({"1": client.Foreign("COMPLETED", end=time.time() - ended_s_ago, exit_code=0)})
    seen = run_state(run, jobs, answer)
    assert seen.state == state and words in seen.reason, seen.reason


def test_what_was_just_sent_is_pending_though_slurm_does_not_know_it(tmp_path: Path) -> None:
    run, jobs = run_of(tmp_path, time.time())
    seen = run_state(run, jobs, client.Answer())
    assert (seen.state, seen.reason) == ("PENDING", "just sent")


def test_who_said_the_end_is_not_asked_about(tmp_path: Path) -> None:
    run, jobs = run_of(tmp_path)
    assert open_ids(run, jobs) == ["1"]
    write_word(run, "train", None, Word("1", "SUCCEEDED"))
    assert open_ids(run, jobs) == []


# Sending once

SBATCH = """#!/bin/sh
echo called >> "$FAKE/calls"
[ -e "$FAKE/quiet" ] && { rm "$FAKE/quiet"; [ -e "$FAKE/taken" ] && echo "41|$(date +%s)" > "$FAKE/queue"
  echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1; }
echo "42|$(date +%s)" > "$FAKE/queue"
echo "Submitted batch job 42"
"""
SQUEUE = """#!/bin/sh
case "$*" in *--name*) [ -e "$FAKE/deaf" ] && { rm "$FAKE/deaf"
    echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1; }
  cat "$FAKE/queue" 2>/dev/null;; esac
exit 0
"""


@pytest.mark.parametrize(("taken", "job", "calls"), [(True, "41", 1), (False, "42", 2)])
def test_a_submission_that_was_cut_off_is_sent_once(
    shell: Shell, recipe: Write, own_place: Path, taken: bool, job: str, calls: int
) -> None:
    """The controller may have taken the job before it went silent: only the queue can tell."""
    commands = own_place / "commands"
    commands.mkdir()
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "sacct": "#!/bin/sh\n"}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    for fault in ("quiet", "deaf"):
        (commands / fault).touch()
    if taken:
        (commands / "taken").touch()
    path = f"{commands}:{os.environ['PATH']}"
    sent = shell("submit", recipe(), "--on", "slurm", "--name", "once", "--json", PATH=path, FAKE=str(commands))
    assert sent.json["job_ids"] == [job]
    assert (commands / "calls").read_text().count("called") == calls
    assert sent.err.count("looking whether it took the job") == 1
    scripts = [path for path in (shell.runs / "once/slurm").glob("*.sh") if not path.is_symlink()]
    assert len([path for path in scripts if path.name.startswith(".")]) == 0
