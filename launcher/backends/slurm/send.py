"""Sending one step to Slurm through submitit: a controller that is silent is asked again, and nothing is sent twice."""

from __future__ import annotations

import contextlib
import io
import time
import uuid
from typing import Any

from submitit.core.core import Job
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, JobPaths

from launcher import console
from launcher.backends.slurm import task
from launcher.backends.slurm.client import ask, find_submitted, is_silence, plain_words
from launcher.backends.slurm.script import StepExecutor
from launcher.errors import BackendError, NotAnswering
from launcher.plan import Plan, Step

PATIENCE_S = 180.0
"""How long a controller that does not answer is asked again to take a job."""
_PAUSE_S = 3.0
_LOOKS = 2
_COUNTED_BY_US = 365 * 24 * 60
"""submitit would count time-outs, in minutes, by a rule of its own; the batch script does that here."""


def send(plan: Plan, step: Step, after: str = "") -> str:
    """Send a step's job, to start when the job ``after`` has succeeded; return its id.

    Raises:
        BackendError: sbatch refused, with its own words, or nobody answered for minutes.
    """
    executor = Sender(plan, step)
    executor.dependency = after
    executor.folder.mkdir(parents=True, exist_ok=True)
    members: list[int | None] = list(step.members) or [None]
    calls = [DelayedSubmission(task.run, str(plan.folder), step.name, member) for member in members]
    return str(executor._internal_process_submissions(calls)[0].job_id).split("_")[0]


class Sender(StepExecutor):
    """The executor of a step, sending."""

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[Job[Any]]:
        """As submitit's, but an array stays one with a single member, and its dependency and Python are kept."""
        folder = JobPaths.get_first_id_independent_folder(self.folder)
        pickles = [folder / f"{uuid.uuid4().hex}.pkl" for _ in delayed_submissions]
        try:
            for call, path in zip(delayed_submissions, pickles, strict=True):
                call.set_timeout(_COUNTED_BY_US, 0)
                call.dump(path)
            number = self._submit_command(self._submitit_command_str).job_id
        except BaseException:
            for path in pickles:
                path.unlink(missing_ok=True)
            raise
        ids = [f"{number}_{index}" for index in range(len(pickles))] if "map_count" in self.parameters else [number]
        jobs = [self.job_class(folder=self.folder, job_id=one, tasks=[0]) for one in ids]
        for job, path in zip(jobs, pickles, strict=True):
            job.paths.move_temporary_file(path, "submitted_pickle")
        return jobs

    def _submit_command(self, command: str) -> Job[Any]:
        start, silent = time.time(), False
        while True:
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
                    job = super()._submit_command(command)
                if silent:
                    self._end_others(start, job.job_id)
                return job
            except (FailedJobError, FailedSubmissionError) as error:
                self._clean_up()
                words = plain_words(str(error))
                if not is_silence(words):
                    raise _refused(words) from None
                silent = True
                console.say(f"Slurm does not answer ({words}); looking whether it took the job ...")
                found = self._sent_after_all(start, words)
                if found:
                    return self.job_class(folder=self.folder, job_id=found, tasks=[0])

    def _sent_after_all(self, start: float, words: str) -> str | None:
        """A controller may take a job and be cut off before it says so: nothing is sent again before it was asked."""
        empty = 0
        # What waited for the controller longest is not what it does first: one answer may be too early.
        while empty < _LOOKS:
            time.sleep(_PAUSE_S)
            with contextlib.suppress(NotAnswering):
                found = find_submitted(self.parameters["job_name"], start)
                if found:
                    return found[-1]
                empty += 1
                continue
            if time.time() - start > PATIENCE_S:
                hint = "Whether it took the job is not known. When it answers again: squeue --me, scancel JOB, submit."
                raise NotAnswering(f"Slurm does not answer ({words})", hint)
        return None

    def _end_others(self, start: float, job_id: str) -> None:
        """A request that was given up may have been answered after all, behind our back."""
        with contextlib.suppress(BackendError):
            others = [job for job in find_submitted(self.parameters["job_name"], start) if job != job_id]
            if others:
                ask("scancel", "--quiet", *others)

    def _clean_up(self) -> None:
        for path in self.folder.glob(".submission_file_*.sh"):
            if not path.is_symlink():
                path.unlink(missing_ok=True)


def _refused(words: str) -> BackendError:
    lowered = words.lower()
    for sign, hint in _HINTS.items():
        if sign in lowered:
            return BackendError(f"sbatch refused: {words}", hint)
    return BackendError(f"sbatch refused: {words}", "What the cluster offers: llavajob doctor --on PROFILE")


_HINTS = {
    "job array specification": "How many shards an array may have: scontrol show config | grep MaxArraySize. Ask for "
    "fewer: --set eval.shards=N",
    "no such file": "Run this on a login node of the cluster, with Slurm's commands on PATH.",
    "partition": "Partitions: sinfo -s. Name one: slurm.partition in the profile, or --set slurm.partition=NAME",
    "account": "Your accounts: sacctmgr show associations user=$USER. Name one: --set slurm.account=NAME",
    "qos": "Name another: --set slurm.qos=NAME",
    "time limit": "The partition's longest: sinfo -o '%P %l'. Ask for less: --set slurm.time=12h",
    "node count": "The partition's nodes: sinfo -o '%P %D'. Ask for fewer: --nodes N",
    "node configuration": "What nodes have: sinfo -o '%P %c %m %G'. Ask for less: --nodes, --gpus-per-node, slurm.mem",
    "memory": "What nodes have: sinfo -o '%P %m'. Ask for less: --set slurm.mem=SIZE",
}
