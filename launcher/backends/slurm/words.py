"""Slurm's states and reasons: which of ours they are, and what they mean to a person."""

from __future__ import annotations

import time

from launcher.backends.base import CANCELLED, FAILED, PENDING, REQUEUED, RUNNING, SUCCEEDED
from launcher.durations import in_words

# man squeue, JOB STATE CODES. COMPLETING is not here: a job that completes has ended, but not yet everywhere.
STATES = {
    "PENDING": PENDING,  # waits, for the reason that stands beside it
    "CONFIGURING": PENDING,  # has nodes that are still booting
    "REQUEUED": REQUEUED,  # was ended and waits again
    "REQUEUE_FED": REQUEUED,  # the same, in a federation
    "REQUEUE_HOLD": REQUEUED,  # the same, until somebody releases it
    "RESV_DEL_HOLD": PENDING,  # held, because its reservation was deleted
    "SPECIAL_EXIT": REQUEUED,  # the same, marked by its site
    "RUNNING": RUNNING,
    "SUSPENDED": RUNNING,  # stopped on its nodes by the site, keeps its memory
    "STOPPED": RUNNING,
    "RESIZING": RUNNING,
    "SIGNALING": RUNNING,
    "STAGE_OUT": RUNNING,
    "COMPLETED": SUCCEEDED,
    "CANCELLED": CANCELLED,  # by a user or an administrator
    "REVOKED": CANCELLED,  # started on another cluster of a federation
    "FAILED": FAILED,  # ended with an exit code other than 0
    "TIMEOUT": FAILED,  # ran into its time limit before it could save and go
    "DEADLINE": FAILED,
    "NODE_FAIL": FAILED,  # a node broke and the job was not requeued
    "BOOT_FAIL": FAILED,
    "OUT_OF_MEMORY": FAILED,
    "PREEMPTED": FAILED,  # gave way to another job and was not requeued
}

ENDS = {
    "TIMEOUT": "the time limit was reached before the state could be saved",
    "DEADLINE": "the job's deadline passed",
    "NODE_FAIL": "a node broke",
    "BOOT_FAIL": "a node did not boot",
    "OUT_OF_MEMORY": "Slurm ended it because it used more memory than it asked for (raise slurm.mem)",
    "PREEMPTED": "it gave way to a job of higher priority",
    "CANCELLED": "cancelled with scancel",
}

# man squeue, JOB REASON CODES: the ones people meet, as a sentence.
REASONS = {
    "Priority": "jobs of higher priority come first",
    "Resources": "waits for free nodes",
    "Dependency": "waits for the step before it",
    "DependencyNeverSatisfied": "the step before it did not succeed",
    "JobArrayTaskLimit": "waits for other members of its array",
    "JobHeldUser": "held by its user; scontrol release lets it go",
    "JobHeldAdmin": "held by an administrator",
    "Licenses": "waits for a licence",
    "Reservation": "waits for its reservation to begin",
    "ReservationDeleted": "its reservation is gone",
    "ReqNodeNotAvail": "a node it asks for is down or reserved",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is closed",
    "PartitionNodeLimit": "it asks for more nodes than its partition allows",
    "PartitionTimeLimit": "its time limit is longer than its partition allows",
    "PartitionConfig": "its partition cannot give what it asks for",
    "NodeDown": "a node it needs is down",
    "BadConstraints": "no node can give what it asks for",
    "InvalidAccount": "its account is not valid here",
    "InvalidQOS": "its quality of service is not valid here",
    "QOSMaxGRESPerUser": "your other jobs use the GPUs that the quality of service allows",
    "QOSMaxJobsPerUserLimit": "your other jobs use up the number that the quality of service allows",
    "QOSMaxWallDurationPerJobLimit": "its time limit is longer than the quality of service allows",
    "AssocGrpGRES": "your account's GPUs are all in use",
    "AssocMaxJobsLimit": "your account's number of jobs is used up",
    "AssocGrpCPUMinutesLimit": "your account's CPU time is used up",
    "AssocGrpBillingMinutes": "your account's budget is used up",
    "JobHoldMaxRequeue": "Slurm holds it after too many starts that failed; scontrol release lets it go",
    "launch_failed_requeued_held": "could not be launched and is held; scontrol release lets it go",
    "Cleaning": "is being cleaned up after its last stay",
    "None": "",
    "": "",
}

_FAR_S = 30 * 86400


def why_pending(reason: str, start: float | None, again: bool) -> str:
    """Say why a job waits and until when, with Slurm's own word in brackets.

    Args:
        reason: Slurm's word.
        start: when Slurm expects it to start.
        again: whether it has run before.
    """
    left_s = None if start is None else max(0.0, start - time.time())
    if reason == "BeginTime":
        what = "requeued, starts again" if again else "starts"
        return f"{what} in {in_words(left_s)} (BeginTime)" if left_s is not None else f"{what} later (BeginTime)"
    word = reason.split(",", 1)[0].strip()
    known = REASONS.get(word, "waits")
    text = f"{known} ({reason})" if reason not in ("", "None") else known
    if again:
        text = f"requeued; {text}" if text else "requeued"
    # Without a time limit on what runs, Slurm expects a start in a year: no help to anybody.
    return f"{text}; expected to start in {in_words(left_s)}" if left_s and left_s < _FAR_S else text
