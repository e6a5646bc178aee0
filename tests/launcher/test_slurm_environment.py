"""What reaches Slurm's commands and which jobs they are given, with stand-ins for the commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.base import BackendState
from launcher.backends.slurm import backend, client, send
from launcher.backends.slurm.client_environment import client_environment, job_environment
from launcher.backends.slurm.place import difference
from launcher.errors import BackendError, SubmissionUnknown
from launcher.plan_text import load_plan
from launcher.run_folder import RunFolder, read_json, write_json
from launcher.store import Run
from tests.shell import Shell

Write = Callable[..., str]

# Each writes down its environment and its arguments, and answers from a file.
RECORD = """#!/bin/sh
me=${0##*/}
env > "$FAKE/$me.env"
echo "$@" >> "$FAKE/$me.calls"
"""
STANDINS = {
    "sbatch": RECORD + '[ -e "$FAKE/slow" ] && sleep 2\ncat "$FAKE/sbatch.out"\n',
    "squeue": RECORD
    + """case "$*" in
*--name=*) cat "$FAKE/by_name" ;;
*"-o %A") sed -nE 's/^([0-9]+)[|](PENDING|RUNNING)[|].*/\\1/p' "$FAKE/by_number" ;;
*) cat "$FAKE/by_number" ;;
esac
""",
    "sacct": RECORD + 'cat "$FAKE/accounts"\n',
    "scancel": RECORD + 'sed -i "s/|PENDING|/|CANCELLED|/" "$FAKE/by_number"\n',
    "scontrol": RECORD + 'cat "$FAKE/config"\n',
}
CONFIG = "ClusterName             = {}\nSlurmctldHost[0]        = {}\nSlurmctldPort           = 6817\n"


class FakeSlurm:
    """A folder with stand-ins for Slurm's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name, text in STANDINS.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.says("sbatch.out", "Submitted batch job 42\n")
        self.says("config", CONFIG.format("ours", "login1"))
        for name in ("by_name", "by_number", "accounts"):
            self.says(name, "")

    def says(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "FAKE": str(self.folder)}

    def calls(self, command: str) -> list[str]:
        path = self.folder / f"{command}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def names(self, command: str) -> set[str]:
        """Names of the variables that a command was given."""
        return {line.partition("=")[0] for line in (self.folder / f"{command}.env").read_text().splitlines()}


@pytest.fixture
def slurm(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    made = FakeSlurm(own_place / "slurm")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


def sent(shell: Shell, slurm: FakeSlurm, recipe: Write, run: str) -> str:
    """Send a run, and return the mark that its job carries."""
    shell("submit", recipe(), "--on", "slurm", "--name", run)
    return mark(slurm)


def mark(slurm: FakeSlurm) -> str:
    return next(word for word in slurm.calls("sbatch")[-1].split() if "llavajob=" in word).removeprefix("--comment=")


def row(number: str, state: str, name: str, trace: str) -> str:
    """A line of squeue."""
    return f"{number}|{state}|None|None|None|node1|{name}|/elsewhere/job.sh|{trace}\n"


def look(shell: Shell, run: str) -> BackendState:
    """The state of a run as the backend has it, asked anew."""
    folder = RunFolder(shell.runs / run)
    record = read_json(folder.record)
    assert record is not None
    backend._forget_answers()
    return backend.SlurmBackend().states([Run(folder, record)])[0]


def forget_number(shell: Shell, run: str) -> None:
    """Take a job's number out of the run's folder, as when the submission was killed before sbatch answered."""
    path = shell.runs / run / "slurm/jobs.json"
    jobs = json.loads(path.read_text())
    for job in jobs["jobs"]:
        job["job_id"] = ""
    path.write_text(json.dumps(jobs))


# Nothing to name never means everything


@pytest.mark.parametrize(
    "command",
    [
        ("scancel",),
        ("scancel", "--state=PENDING"),
        ("scancel", "--quiet", "--signal=TERM"),
        ("scancel", "--user=root"),
        ("scancel", ""),
        ("scancel", "12", ""),
        ("scancel", "12 13"),
        ("scancel", "0"),
        ("scancel", "-u", "root"),
        ("scancel", "None"),
        ("squeue", "--noheader", "--jobs="),
        ("squeue", "--jobs=12,"),
        ("squeue", "--jobs=,12"),
        ("squeue", "--name="),
        ("sacct", "-X", "--jobs="),
        ("sacct", "--jobs=all"),
        ("scontrol", "requeue"),
        ("scontrol", "requeue", ""),
        ("scontrol", "hold", "name=x"),
        ("scontrol", "release", "12", ""),
    ],
)
def test_a_command_that_names_no_job_is_never_run(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail(f"{command} was run"))
    with pytest.raises(BackendError, match=r"no Slurm job is named|is not the id of a Slurm job"):
        client.ask(*command)


@pytest.mark.parametrize(
    "command",
    [("scancel", "--state=PENDING", "12", "13_4"), ("squeue", "--jobs=12,13_4"), ("scontrol", "show", "config")],
)
def test_a_command_that_names_its_jobs_is_run(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess(command, 0, "answer", "")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    assert client.ask(*command) == "answer"


def test_cancel_of_a_run_without_a_number_ends_nothing_else(shell: Shell, recipe: Write, slurm: FakeSlurm) -> None:
    sent(shell, slurm, recipe, "half")
    forget_number(shell, "half")
    said = shell("cancel", "half")
    assert slurm.calls("scancel") == []
    assert "half: CANCELLED, cancelled by " in said.err
    assert shell.status("half")["state"] == "CANCELLED"


def test_cancel_finds_the_job_whose_number_was_never_written_down(
    shell: Shell, recipe: Write, slurm: FakeSlurm
) -> None:
    mine = sent(shell, slurm, recipe, "half")
    forget_number(shell, "half")
    other = f"llavajob={'0' * 16}.{'0' * 8}"
    now = int(time.time())
    slurm.says("by_name", f"41|{now}|/x.sh|{other}\n42|{now}|/x.sh|{mine}\n43|{now}|/x.sh|(null)\n")
    slurm.says("by_number", row("42", "PENDING", "half", mine))
    shell("cancel", "half")
    assert slurm.calls("scancel") == ["--state=PENDING 42", "42"]


def test_a_folder_with_odd_numbers_is_unknown_and_ends_nothing(shell: Shell, recipe: Write, slurm: FakeSlurm) -> None:
    for run in ("good", "odd", "torn", "newer"):
        mine = sent(shell, slurm, recipe, run)
        if run == "good":
            slurm.says("by_number", row("42", "PENDING", run, mine))
    path = shell.runs / "odd/slurm/jobs.json"
    path.write_text(path.read_text().replace('"42"', '"--state=PENDING"'))
    (shell.runs / "torn/slurm/jobs.json").write_text('{"jobs": [{"step": 3}]}')
    path = shell.runs / "newer/slurm/jobs.json"
    path.write_text(path.read_text().replace('"members": []', '"members": 3'))
    seen = {run["run"]: run["state"] for run in shell("list", "--json").json}
    assert seen == {"good": "PENDING", "odd": "UNKNOWN", "torn": "UNKNOWN", "newer": "UNKNOWN"}
    refused = shell("cancel", "odd", check=1)
    assert "'--state=PENDING' is not the id of a Slurm job" in refused.err
    assert slurm.calls("scancel") == []


# The caller's environment

OPTIONS = (
    "SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_EXPORT", "SBATCH_WAIT", "SBATCH_NO_REQUEUE", "SBATCH_JOB_NAME",
    "SBATCH_ACCOUNT", "SQUEUE_USERS", "SQUEUE_FORMAT", "SQUEUE_STATES", "SQUEUE_PARTITION", "SACCT_FORMAT",
    "SCANCEL_STATE", "SCANCEL_USER", "SCANCEL_INTERACTIVE", "SINFO_FORMAT", "SLURM_EXPORT_ENV", "SLURM_TIME_FORMAT_X",
    "SRUN_CPUS_PER_TASK", "SALLOC_PARTITION", "SLURM_EXIT_ERROR",
)  # fmt: skip
OTHER_JOB = (
    "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_MEM_PER_CPU", "SLURM_CPU_BIND", "SLURM_PROCID",
    "SLURM_CPUS_PER_TASK", "SLURM_NTASKS", "SLURMD_NODENAME", "PMI_RANK", "PMI2_FD", "PMIX_RANK", "PMI_FD",
    "LLAVAJOB_RUN", "LLAVAJOB_RUN_ID", "LLAVAJOB_ATTEMPT", "LLAVAJOB_ATTEMPT_DIR", "LLAVAJOB_NODE", "LLAVAJOB_PLAN",
    "PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK", "SUBMITIT_EXECUTOR", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
PASSES = {"SLURM_CONF": "/etc/slurm/slurm.conf", "MY_SITE": "x", "CUDA_HOME": "/opt/cuda", "OMPI_MCA_btl": "self"}


def test_no_option_of_the_callers_shell_reaches_a_command_or_the_job(
    shell: Shell, recipe: Write, slurm: FakeSlurm
) -> None:
    caller = {**dict.fromkeys((*OPTIONS, *OTHER_JOB), "1"), **PASSES}
    said = shell("submit", recipe(), "--on", "slurm", "--name", "clean", **caller)
    slurm.says("by_number", row("42", "PENDING", "clean", mark(slurm)))
    shell("status", "clean", **caller)
    slurm.says("by_number", row("42", "CANCELLED", "clean", mark(slurm)))
    shell("cancel", "clean", **caller, check=None)
    for command in ("sbatch", "squeue", "scontrol"):
        inherited = slurm.names(command)
        assert inherited & {*OPTIONS, *OTHER_JOB} == set(), command
        assert inherited >= set(PASSES), command
    assert "SLURM_TIME_FORMAT" in slurm.names("squeue") and "SLURM_TIME_FORMAT" not in slurm.names("sbatch")
    assert "Not heeded: SBATCH_ACCOUNT, SBATCH_EXPORT" in said.err


def test_scancel_and_sacct_get_the_same_environment(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OPTIONS, *OTHER_JOB):
        monkeypatch.setenv(name, "1")
    for command in (("scancel", "1"), ("sacct", "--jobs=1"), ("scontrol", "requeue", "1")):
        client.ask(*command)
        assert slurm.names(command[0]) & {*OPTIONS, *OTHER_JOB} == set()


def test_what_a_user_chose_outside_of_a_job_stays() -> None:
    chosen = {"CUDA_VISIBLE_DEVICES": "1", "TMPDIR": "/scratch/7", "LLAVAJOB_RUNS": "/runs", "SLURM_CLUSTERS": "b"}
    assert job_environment(chosen) == {name: chosen[name] for name in chosen if name != "SLURM_CLUSTERS"}
    assert client_environment(chosen)["SLURM_CLUSTERS"] == "b"
    inside = {**chosen, "SLURM_JOB_ID": "7"}
    assert job_environment(inside) == {"LLAVAJOB_RUNS": "/runs"}
    assert "SLURM_CLUSTERS" not in client_environment(inside)


def test_the_script_that_is_shown_is_the_one_that_is_sent(shell: Shell, recipe: Write, slurm: FakeSlurm) -> None:
    ask = ("submit", recipe(), "--on", "slurm", "--name", "same", "--set", "slurm.partition=main")
    shown = shell(*ask, "--dry-run", SBATCH_PARTITION="high", SUBMITIT_PREEMPT_SIGNAL="USR1").out
    shell(*ask, SBATCH_PARTITION="high")
    assert shown == (shell.runs / "same/slurm/42_submission.sh").read_text()
    assert "#SBATCH --signal=USR2@" in shown
    options = slurm.calls("sbatch")[0].split()
    assert [option.partition("=")[0] for option in options[:-1]] == ["--comment"]


def test_several_clusters_to_choose_from_are_refused(shell: Shell, recipe: Write, slurm: FakeSlurm) -> None:
    refused = shell("submit", recipe(), "--on", "slurm", "--name", "any", SLURM_CLUSTERS="a,b", check=2)
    assert "SLURM_CLUSTERS names several clusters (a,b)" in refused.err
    assert slurm.calls("sbatch") == [] and not (shell.runs / "any").exists()
    shell("submit", recipe(), "--on", "slurm", "--name", "one", SLURM_CLUSTERS="a")
    assert "--clusters=a" in slurm.calls("sbatch")[0]


# A number is not an identity


def test_only_a_job_with_the_runs_mark_is_the_runs(shell: Shell, recipe: Write, slurm: FakeSlurm) -> None:
    mine = sent(shell, slurm, recipe, "mine")
    for name, trace in (("mine", mine), ("renamed", mine), ("mine", f"my own words {mine}")):
        slurm.says("by_number", row("42", "RUNNING", name, trace))
        assert look(shell, "mine").state == "STARTING", (name, trace)
    other = f"llavajob={'0' * 16}.{'0' * 8}"
    for name, trace in (("mine", other), ("mine", "(null)"), ("somebody", "(null)"), ("somebody", other)):
        for state in ("RUNNING", "COMPLETED", "CANCELLED", "PENDING"):
            slurm.says("by_number", row("42", state, name, trace))
            seen = look(shell, "mine")
            assert seen.state == "UNKNOWN" and "job 42 is another one here" in seen.reason, (name, trace, seen)
    shell("cancel", "mine")
    assert slurm.calls("scancel") == [], "the other job goes on"
    assert look(shell, "mine").state == "CANCELLED"


def test_a_run_of_the_version_before_is_known_by_its_script_and_name(
    shell: Shell, recipe: Write, slurm: FakeSlurm
) -> None:
    sent(shell, slurm, recipe, "old")
    record = json.loads((shell.runs / "old/run.json").read_text())
    for key in ("run_id", "where"):
        del record[key]
    (shell.runs / "old/run.json").write_text(json.dumps(record))
    script = shell.runs / "old/slurm/.submission_file_1.sh"
    slurm.says("by_number", f"42|RUNNING|None|None|None|node1|old|{script}|(null)\n")
    assert look(shell, "old").state == "STARTING"
    slurm.says("by_number", "42|RUNNING|None|None|None|node1|stranger|/home/you/job.sh|(null)\n")
    assert look(shell, "old").state == "UNKNOWN"
    # A Slurm whose accounting keeps no command lines.
    slurm.says("by_number", "")
    slurm.says("accounts", "42|FAILED|7:0|1000|1010|node1|old\n")
    assert look(shell, "old").state == "FAILED"


def test_the_accounting_tells_whose_a_job_was(shell: Shell, recipe: Write, slurm: FakeSlurm) -> None:
    mine = sent(shell, slurm, recipe, "over")
    lines = {
        "UNKNOWN": "42|COMPLETED|0:0|1000|1010|node1|over|sbatch -J over job.sh\n",
        "FAILED": f"42|FAILED|7:0|1000|1010|node1|over|sbatch --comment=mine {mine} /x.sh\n",
    }
    for state, line in lines.items():
        slurm.says("accounts", line)
        assert look(shell, "over").state == state


def test_a_copy_of_a_run_does_not_touch_the_original(shell: Shell, recipe: Write, slurm: FakeSlurm) -> None:
    mine = sent(shell, slurm, recipe, "original")
    slurm.says("by_number", row("42", "RUNNING", "original", mine))
    shutil.copytree(shell.runs / "original", shell.runs / "copy", symlinks=True)
    seen = shell.status("copy")
    assert (
        seen["state"] == "UNKNOWN" and f"this is a copy; the run and its jobs belong to {shell.runs}" in seen["reason"]
    )
    assert f"is a copy of the run at {shell.runs / 'original'}" in shell("cancel", "copy", check=2).err
    assert slurm.calls("scancel") == []
    assert not (shell.runs / "original/cancel.json").exists() and not (shell.runs / "copy/cancel.json").exists()
    assert shell.status("original")["state"] == "STARTING"
    # Moved, not copied: the job is still this run's.
    shutil.rmtree(shell.runs / "copy")
    (shell.runs / "original").rename(shell.runs / "moved")
    assert shell.status("moved")["state"] == "STARTING"


# Another cluster


def test_another_cluster_neither_judges_nor_cancels(
    shell: Shell, recipe: Write, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = sent(shell, slurm, recipe, "away")
    write_json(shell.runs / "away/steps/train.json", {"job_id": "42", "state": "RUNNING"})
    elsewhere = {
        "theirs": "runs on cluster 'ours'; asked here is cluster 'theirs'",
        "ours": "runs on the cluster 'ours' of login1:6817; asked here is another cluster 'ours', of login2:6817",
    }
    for cluster, words in elsewhere.items():
        slurm.says("config", CONFIG.format(cluster, "login2"))
        monkeypatch.setenv("SLURM_CONF", f"/etc/{cluster}.conf")
        for answer in ("", row("42", "RUNNING", "away", "(null)"), row("42", "FAILED", "away", "(null)")):
            slurm.says("by_number", answer)
            seen = look(shell, "away")
            assert (seen.state, seen.reason) == ("UNKNOWN", words)
        assert words in shell("cancel", "away", check=1).err
        shell("resume", "away", check=2)
    assert slurm.calls("scancel") == [] and not (shell.runs / "away/cancel.json").exists()
    assert len(slurm.calls("sbatch")) == 1
    slurm.says("config", CONFIG.format("ours", "login1"))
    monkeypatch.setenv("SLURM_CONF", "/etc/back.conf")
    slurm.says("by_number", row("42", "RUNNING", "away", mine))
    assert look(shell, "away").state == "RUNNING", "nothing was written down there"


def test_a_controller_that_has_moved_still_has_the_runs_jobs(
    shell: Shell, recipe: Write, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = sent(shell, slurm, recipe, "moved")
    slurm.says("config", CONFIG.format("ours", "login9"))
    monkeypatch.setenv("SLURM_CONF", "/etc/moved.conf")
    slurm.says("by_number", row("42", "PENDING", "moved", mine))
    assert look(shell, "moved").state == "PENDING"
    shell("cancel", "moved")
    assert slurm.calls("scancel")[0] == "--state=PENDING 42"


def test_steps_that_are_done_are_not_sent_again_after_an_end_that_nobody_saw(
    shell: Shell, pipeline: Write, slurm: FakeSlurm
) -> None:
    shell("submit", pipeline(), "--on", "slurm", "--name", "line")
    first = len(slurm.calls("sbatch"))
    write_json(shell.runs / "line/steps/learn.json", {"job_id": "42", "state": "SUCCEEDED"})
    path = shell.runs / "line/slurm/jobs.json"
    path.write_text(path.read_text().replace('"submitted": ', '"submitted": 1000, "was": '))
    assert look(shell, "line").state == "FAILED" and json.loads(path.read_text())["end"] is None
    shell("resume", "line")
    assert len(slurm.calls("sbatch")) == 2 * first - 1
    assert [job["step"]["state"] for job in json.loads(path.read_text())["jobs"]][:2] == ["SUCCEEDED", "PENDING"]


def test_a_verdict_that_was_not_seen_is_not_written_down(shell: Shell, recipe: Write, slurm: FakeSlurm) -> None:
    mine = sent(shell, slurm, recipe, "quiet")
    path = shell.runs / "quiet/slurm/jobs.json"
    path.write_text(path.read_text().replace('"submitted": ', '"submitted": 1000, "was": '))
    assert look(shell, "quiet").state == "FAILED"
    assert json.loads(path.read_text())["end"] is None
    slurm.says("by_number", row("42", "RUNNING", "quiet", mine))
    assert look(shell, "quiet").state == "STARTING"
    slurm.says("by_number", row("42", "FAILED", "quiet", mine))
    assert look(shell, "quiet").state == "FAILED"
    assert json.loads(path.read_text())["end"]["state"] == "FAILED"


def test_an_accounting_that_is_silent_is_no_end(shell: Shell, recipe: Write, slurm: FakeSlurm) -> None:
    sent(shell, slurm, recipe, "silent")
    path = shell.runs / "silent/slurm/jobs.json"
    path.write_text(path.read_text().replace('"submitted": ', '"submitted": 1000, "was": '))
    refusal = "sacct: error: slurm_persist_conn_open: failed to open persistent connection: Connection refused"
    (slurm.folder / "bin/sacct").write_text(f"{RECORD}echo '{refusal}' >&2\nexit 1\n")
    seen = look(shell, "silent")
    assert seen.state == "UNKNOWN" and "how it ended is not known yet" in seen.reason


@pytest.mark.parametrize(
    ("recorded", "here", "same"),
    [
        ({}, {"cluster": "b", "controller": "h:1"}, True),
        ({"cluster": "a", "controller": "h:1"}, {}, True),
        ({"cluster": "a", "controller": "h:1"}, {"cluster": "a", "controller": "h:1"}, True),
        ({"cluster": "a"}, {"cluster": "a", "controller": "h:1"}, True),
        ({"cluster": "a", "controller": "h:1"}, {"cluster": "b", "controller": "h:1"}, False),
        ({"cluster": "a", "controller": "h:1"}, {"cluster": "a", "controller": "h:2"}, False),
    ],
)
def test_which_places_are_the_same(recorded: dict[str, str], here: dict[str, str], same: bool) -> None:
    assert (difference(recorded, here) == "") is same


# A submission that is cut off


def interrupt(shell: Shell, slurm: FakeSlurm, recipe: Write, run: str) -> Any:
    """Press Ctrl-C, as a terminal does, while sbatch works."""
    slurm.says("slow", "")
    process = subprocess.Popen(
        [*shell.command, "submit", recipe(), "--on", "slurm", "--name", run], cwd=shell.folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    shell.until(lambda: slurm.calls("sbatch"), "sbatch at work")
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=60)


def test_ctrl_c_while_sbatch_works_takes_the_job_back(shell: Shell, recipe: Write, slurm: FakeSlurm) -> None:
    interrupt(shell, slurm, recipe, "cut")
    assert slurm.calls("scancel") == ["--quiet 42"]


@pytest.mark.parametrize("ending", ["kill -9 $$", "exit 1"])
def test_an_answer_that_was_lost_is_looked_for(shell: Shell, recipe: Write, slurm: FakeSlurm, ending: str) -> None:
    """The job was made, and sbatch ended before it could say so."""
    text = f'{RECORD}for a in "$@"; do case $a in --comment=*) m=${{a#--comment=}};; esac; done\n'
    text += f'echo "42|1|/x.sh|$m" > "$FAKE/by_name"\n{ending}\n'
    (slurm.folder / "bin/sbatch").write_text(text)
    made = shell("submit", recipe(), "--on", "slurm", "--name", "lost", "--json").json
    assert made["job_ids"] == ["42"] and len(slurm.calls("sbatch")) == 1


def test_a_job_that_was_made_although_sbatch_failed_later_is_the_runs(
    shell: Shell, recipe: Write, slurm: FakeSlurm
) -> None:
    (slurm.folder / "bin/sbatch").write_text(f"{RECORD}echo 'Submitted batch job 42'\necho later >&2\nexit 3\n")
    assert shell("submit", recipe(), "--on", "slurm", "--name", "late", "--json").json["job_ids"] == ["42"]
    assert len(slurm.calls("sbatch")) == 1


def test_a_submission_that_nobody_answered_keeps_the_run(
    shell: Shell, recipe: Write, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither sbatch nor the queue answers: the job may be there, so the run can be looked at and cancelled."""
    mine = sent(shell, slurm, recipe, "maybe")
    ticket = mine.rpartition(".")[2]
    plan = load_plan(shell.runs / "maybe/slurm/plan.yaml")
    silence = f"{RECORD}echo 'error: Socket timed out on send/recv operation' >&2\nexit 1\n"
    answering = (slurm.folder / "bin/squeue").read_text()
    for command in ("sbatch", "squeue"):
        (slurm.folder / "bin" / command).write_text(silence)
    monkeypatch.setattr(send, "PATIENCE_S", 0.0)
    monkeypatch.setattr(send, "_PAUSE_S", 0.01)
    with pytest.raises(SubmissionUnknown, match="whether Slurm took the job is not known"):
        send.send(plan, plan.steps[0], ticket)
    forget_number(shell, "maybe")
    (slurm.folder / "bin/squeue").write_text(answering)
    slurm.says("by_name", f"57|1|/x.sh|{mine}\n")
    slurm.says("by_number", row("57", "PENDING", "maybe", mine))
    assert look(shell, "maybe").job_ids == ["57"]
    shell("cancel", "maybe")
    assert slurm.calls("scancel")[0] == "--state=PENDING 57"
