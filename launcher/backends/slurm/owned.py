"""What Slurm knows of a run's own jobs, and why a job that it does not know may go on nevertheless."""

from __future__ import annotations

from dataclasses import replace

from launcher.backends.base import SUCCEEDED
from launcher.backends.slurm.client import Answer, find_submitted
from launcher.backends.slurm.files import Job, Jobs
from launcher.backends.slurm.identity import Owner
from launcher.backends.slurm.place import difference, place_here
from launcher.backends.slurm.states import open_ids
from launcher.store import Run, original_of


def owner_of(run: Run) -> Owner:
    return Owner(run.run_id, str(run.record.get("there") or ""))


def job_name(run: Run, jobs: Jobs, job: Job) -> str:
    """The name that a step's job was given."""
    name = str(run.record.get("name") or run.name)
    return name if len(jobs.jobs) == 1 else f"{name}.{job.step.name}"


def own_answer(run: Run, jobs: Jobs, answer: Answer) -> Answer:
    """What an answer says of a run's own jobs; another job that has the number of one of them is left out."""
    owner, mine = owner_of(run), replace(answer, jobs={})
    copied = copied_from(run)
    if copied:
        mine.not_here = copied
        return mine
    for job in jobs.jobs:
        name = job_name(run, jobs, job)
        for one in job.ids() if job.job_id else ():
            foreign = answer.job(one)
            if foreign is None:
                continue
            if owner.owns(name, foreign.name, foreign.trace):
                mine.jobs[one] = foreign
            else:
                mine.not_here = f"job {one} is another one here ({foreign.name}): this cluster counts its jobs anew"
    return mine


def missing_ids(run: Run, jobs: Jobs, mine: Answer) -> list[str]:
    """Ids of the jobs that have not said how they ended, and that Slurm does not know."""
    return [one for one in open_ids(run.folder, jobs) if mine.job(one) is None]


def unsent(jobs: Jobs) -> list[Job]:
    """Steps that are to be sent and have no number: their submission goes on, or was cut off."""
    return [job for job in jobs.jobs if not job.job_id and job.step.state != SUCCEEDED]


def find_unsent(run: Run, jobs: Jobs) -> list[str]:
    """Give steps without a number the number of the job that was made for them, if there is one; return those."""
    found = []
    for job in unsent(jobs):
        numbers = find_submitted(job_name(run, jobs, job), owner_of(run), job.ticket, jobs.submitted)
        if numbers:
            job.job_id = numbers[-1]
            found += numbers
    return found


def why_not_here(run: Run) -> str:
    """Say why this is not where a run's jobs can be judged; empty: it is.

    Raises:
        NotAnswering: the controller is silent.
    """
    copied = copied_from(run)
    if copied:
        return copied
    recorded = run.record.get("where")
    if not isinstance(recorded, dict) or not recorded:
        return ""
    return difference(recorded, place_here())


def copied_from(run: Run) -> str:
    """Say that this folder is only a copy of the one that the run was sent from; empty: it is that one."""
    original = original_of(run)
    return f"this is a copy; the run and its jobs belong to {original}" if original else ""


def all_seen(run: Run, jobs: Jobs, mine: Answer) -> bool:
    """Whether every end was seen: the job itself wrote it down, or Slurm told it of this very job."""
    return not unsent(jobs) and not missing_ids(run, jobs, mine)


def queued_numbers(jobs: Jobs, mine: Answer) -> list[str]:
    """Numbers of a run's jobs that Slurm knows, whatever their state; in the order of the steps."""
    return [job.job_id for job in jobs.jobs if job.job_id and any(mine.job(one) for one in job.ids())]
