"""What tests do with a run's jobs behind the launcher's back: look at them, requeue, release, hasten and hit them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import psutil

from tests.shell import Shell
from tests.slurm.bed import Bed, Cluster, until

COUNT_DOWN = re.compile(r"starts again in (?:\d+ min )?\d+ s \(BeginTime\)")
"""How a requeued job that waits for its time is described."""
REVOKED_S = 3.0
"""When a requeued job's old credential is revoked, at the latest."""
COMPLETING_LIMIT_S = 30.0


def number(shell: Shell, run: str, step: int = 0) -> str:
    """The id of a run's job."""
    jobs = json.loads((shell.runs / run / "slurm/jobs.json").read_text())["jobs"]
    return str([job["job_id"] for job in jobs if job["job_id"]][step])


def shown(bed: Cluster, job: str) -> dict[str, str]:
    """What the controller shows of a job."""
    words = bed.call("scontrol", "show", "job", "-o", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def accounted(bed: Cluster, job: str, *fields: str) -> list[list[str]]:
    """What the accounting keeps of a job, one row for each of its stays or members."""
    options = ("--noheader", "--parsable2", "--allocations", "--duplicates", f"--format={','.join(fields)}")
    return [line.split("|") for line in bed.call("sacct", f"--jobs={job}", *options).splitlines()]


def queued(bed: Cluster) -> list[str]:
    """The jobs that have not ended, once those that are COMPLETING have left their nodes."""
    lines: list[str] = []

    def settled() -> bool:
        lines[:] = bed.call("squeue", "--noheader", "--me", "--format=%i %j %T").splitlines()
        return not any(line.endswith(" COMPLETING") for line in lines)

    until(settled, COMPLETING_LIMIT_S, lambda: f"jobs that do not leave their nodes: {lines}")
    return lines


def wait_requeued(shell: Shell, run: str, most_s: float = 60.0) -> Any:
    """Wait until a run waits in the queue for its next attempt, and says for how long."""

    def counts_down() -> Any:
        seen = shell.look(run)
        assert seen["state"] not in ("SUCCEEDED", "FAILED", "CANCELLED"), seen
        return seen["state"] == "REQUEUED" and COUNT_DOWN.search(seen["reason"]) and seen

    return shell.until(counts_down, f"{run} requeued", most_s)


def start_now(bed: Cluster, job: str) -> None:
    """Spare a requeued job most of its two minutes.

    They let its old credential be revoked everywhere: a node refuses a new one that is not younger than that.
    """
    requeued = time.mktime(time.strptime(shown(bed, job)["SubmitTime"], "%Y-%m-%dT%H:%M:%S"))
    until(lambda: time.time() > requeued + REVOKED_S, REVOKED_S + 1, lambda: "the clock stands still")
    bed.call("scontrol", "update", f"JobId={job}", "StartTime=now")


def end_soon(bed: Cluster, job: str, seconds: int) -> None:
    """Move a running job's time limit to so many seconds from now; Slurm looks every 30 s."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))
    bed.call("scontrol", "update", f"JobId={job}", f"EndTime={moment}")


def enough(run: Path) -> None:
    """Have the stand-in runtime take the step that it is at for the last one."""
    (run / "enough").touch()


def steps_done(run: Path) -> list[int]:
    """The steps that training did, in order, those that were lost and done again included."""
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def rank_log(shell: Shell, run: str, attempt: int, rank: int = 0) -> str:
    """The log of one rank."""
    return (shell.runs / run / f"attempts/{attempt}/rank{rank:04d}.log").read_text()


def events(run: Path) -> list[dict[str, Any]]:
    """What happened to a run, in order."""
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def batch_script(bed: Bed, job: str) -> psutil.Process:
    """The process of a job's batch script."""
    found = [p for p in map(psutil.Process, bed.pids()) if f"job{int(job):05d}/slurm_script" in " ".join(p.cmdline())]
    return found[0]
