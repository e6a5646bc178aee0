"""Pipelines on a real Slurm: stages chained by dependency, ended together, resumed at the one that failed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from tests.shell import Shell, pipeline, recipe, shell
from tests.slurm.bed import Cluster
from tests.slurm.jobs import enough, number, queued, shown, start_now, wait_requeued

__all__ = ["pipeline", "recipe", "shell"]
Write = Callable[..., str]
STAGES = ("learn", "merge", "score", "score-merge")
LONG = "100000"


def states(shell: Shell, run: str) -> list[str]:
    """The states of the stages, in order."""
    stages = shell.status(run)["stages"]
    assert tuple(stage["name"] for stage in stages) == STAGES
    return [stage["state"] for stage in stages]


def submit(shell: Shell, recipe: str, run: str, **environment: str) -> list[str]:
    """Submit a pipeline; return its jobs."""
    return list(shell("submit", recipe, "--on", "slurm", "--name", run, "--json", **environment).json["job_ids"])


def test_stages_run_one_after_the_other(shell: Shell, pipeline: Write, bed: Cluster) -> None:
    jobs = submit(shell, pipeline(), "all", STANDIN_STEPS=LONG)
    assert len(jobs) == len(STAGES)
    shell.wait("all", "RUNNING")
    for before, after in pairwise(jobs):
        assert shown(bed, after)["Dependency"].startswith(f"afterok:{before}")
    assert states(shell, "all") == ["RUNNING", "PENDING", "PENDING", "PENDING"]
    shown_stages = shell("status", "all").out
    assert "- learn  running" in shown_stages and "- score  pending" in shown_stages
    enough(shell.runs / "all/stages/learn")
    done = shell.wait("all")
    assert (done["state"], states(shell, "all")) == ("SUCCEEDED", ["SUCCEEDED"] * 4)
    ends = [(stage["started"], stage["ended"]) for stage in done["stages"]]
    assert all(ended <= started for (_, ended), (started, _) in pairwise(ends))
    assert "answered by 2 shards, 2 asked for" in shell("status", "all").out
    assert queued(bed) == [] and shell.left("all") == []


def test_a_failed_stage_ends_the_rest_and_resume_starts_there(shell: Shell, pipeline: Write, bed: Cluster) -> None:
    first = submit(shell, pipeline(), "pipe", STANDIN_FAIL="shard:1")
    failed = shell.wait("pipe")
    assert failed["state"] == "FAILED" and failed["stage"] == "score"
    assert failed["reason"].startswith("score: shard 1: exit code 137 (SIGKILL)")
    assert states(shell, "pipe")[:3] == ["SUCCEEDED", "SUCCEEDED", "FAILED"]
    shell.until(lambda: queued(bed) == [], "an empty queue: the merge is given up")
    assert "x score  failed" in shell("status", "pipe").out
    again = shell("resume", "pipe", "--json").json["job_ids"]
    assert len(again) == 2 and not set(again) & set(first)
    assert shell.wait("pipe")["state"] == "SUCCEEDED"
    assert states(shell, "pipe") == ["SUCCEEDED"] * 4
    attempts = {stage: len(list((shell.runs / f"pipe/stages/{stage}/attempts").iterdir())) for stage in STAGES[:3]}
    assert attempts == {"learn": 1, "merge": 1, "score": 2}


def test_a_first_stage_that_fails_leaves_nothing_waiting(shell: Shell, pipeline: Write, bed: Cluster) -> None:
    submit(shell, pipeline(), "bad", STANDIN_FAIL="exit:3")
    failed = shell.wait("bad")
    assert failed["state"] == "FAILED" and failed["reason"] == "learn: rank 0 on node 0 (here): no pictures"
    shell.until(lambda: queued(bed) == [], "an empty queue: what depends on it is given up")
    assert states(shell, "bad")[0] == "FAILED" and not {"SUCCEEDED", "RUNNING"} & set(states(shell, "bad"))


def test_a_requeued_stage_keeps_the_rest_waiting(shell: Shell, pipeline: Write, bed: Cluster) -> None:
    jobs = submit(shell, pipeline(), "moved", STANDIN_STEPS=LONG)
    shell.wait_step("moved", 3)
    bed.call("scontrol", "requeue", jobs[0])
    wait_requeued(shell, "moved")
    assert states(shell, "moved") == ["REQUEUED", "PENDING", "PENDING", "PENDING"]
    enough(shell.runs / "moved/stages/learn")
    start_now(bed, jobs[0])
    assert shell.wait("moved")["state"] == "SUCCEEDED"


def test_cancel_ends_every_stage(shell: Shell, pipeline: Write, bed: Cluster) -> None:
    jobs = submit(shell, pipeline(), "long", STANDIN_STEPS=LONG)
    shell.wait_step("long", 3)
    shell("cancel", "long")
    assert queued(bed) == [] and shell.left("long") == []
    cancelled = shell.status("long")
    assert cancelled["state"] == "CANCELLED" and f"state saved at step {cancelled['step']}" in cancelled["reason"]
    assert states(shell, "long") == ["CANCELLED"] * 4
    assert {shown(bed, job)["JobState"] for job in jobs} == {"CANCELLED"}
    shell("resume", "long", STANDIN_STEPS="5")
    assert shell.wait("long")["state"] == "SUCCEEDED"
    assert number(shell, "long") not in jobs
