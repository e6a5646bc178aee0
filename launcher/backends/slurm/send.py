"""Sending one step to Slurm through submitit: a controller that is silent is asked again, and nothing is sent twice."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from pathlib import Path
from typing import Any

from submitit.core.core import Job
from submitit.core.utils import DelayedSubmission, FailedSubmissionError, JobPaths

from launcher import console
from launcher.backends.slurm import task
from launcher.backends.slurm.client import ask, find_submitted
from launcher.backends.slurm.client_environment import CLUSTERS
from launcher.backends.slurm.identity import Owner, comment
from launcher.backends.slurm.sbatch import Interrupted, run_sbatch
from launcher.backends.slurm.script import StepExecutor
from launcher.errors import BackendError, NotAnswering, SubmissionUnknown
from launcher.plan import Plan, Step

PATIENCE_S = 180.0
"""How long a controller that does not answer is asked again to take a job."""
_PAUSE_S = 3.0
_LOOKS = 2
_INTERRUPTED_S = 15.0
"""How long is looked for the job of a submission that was interrupted."""
_REFUSED = "sbatch refused: "
_COUNTED_BY_US = 365 * 24 * 60
"""submitit would count time-outs, in minutes, by a rule of its own; the batch script does that here."""


def send(plan: Plan, step: Step, ticket: str, after: str = "") -> str:
    """Send a step's job, to start when the job ``after`` has succeeded; return its id.

    Args:
        plan: of the run.
        step: which of its steps.
        ticket: name of this submission, which the job carries.
        after: the job that has to succeed first; empty: none.

    Raises:
        SubmissionUnknown: nobody answered for minutes; the job may have been made.
        BackendError: sbatch refused, with its own words; there is no job.
    """
    executor = Sender(plan, step)
    executor.dependency = after
    executor.ticket = ticket
    executor.folder.mkdir(parents=True, exist_ok=True)
    members: list[int | None] = list(step.members) or [None]
    calls = [_call(plan, step, member) for member in members]
    return str(executor._internal_process_submissions(calls)[0].job_id).split("_")[0]


def _call(plan: Plan, step: Step, member: int | None) -> DelayedSubmission:
    """What a node's part of a step, or a shard, is to call."""
    call = DelayedSubmission(task.run, str(plan.folder), step.name, member)
    call.set_timeout(_COUNTED_BY_US, 0)
    return call


def write_call(plan: Plan, step: Step, member: int | None, path: Path) -> None:
    """Write what a job is to call, where its submission was ended before it could."""
    _call(plan, step, member).dump(path)


class Sender(StepExecutor):
    """The executor of a step, sending."""

    def __init__(self, plan: Plan, step: Step) -> None:
        super().__init__(plan, step)
        self.ticket = ""
        self.owner = Owner(plan.run_id, str(plan.folder))
        self.comment = str(plan.settings["comment"] or "")

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[Job[Any]]:
        """As submitit's, but an array stays one with a single member, and its dependency and Python are kept."""
        folder = JobPaths.get_first_id_independent_folder(self.folder)
        pickles = [folder / f"{uuid.uuid4().hex}.pkl" for _ in delayed_submissions]
        try:
            for call, path in zip(delayed_submissions, pickles, strict=True):
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

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        """What is different for each submission stands on the command line: the script stays the one that was shown."""
        command: list[str] = super()._make_submission_command(submission_file_path)
        more = [f"--clusters={os.environ[CLUSTERS]}"] if os.environ.get(CLUSTERS) else []
        if self.owner.run_id:
            more.append(f"--comment={comment(self.comment, self.owner.run_id, self.ticket)}")
        return [command[0], *more, *command[1:]]

    def _submit_command(self, command: str) -> Job[Any]:
        """As submitit's, but in an environment without the caller's options, and sure of what became of it."""
        path = JobPaths.get_first_id_independent_folder(self.folder) / f".submission_file_{uuid.uuid4().hex}.sh"
        path.write_text(self._make_submission_file_text(command, ""), encoding="utf-8")
        start = time.time()
        try:
            number = self._submit(path, start)
        except SubmissionUnknown:
            raise  # the job may be there, and the script tells what it is
        except (Interrupted, KeyboardInterrupt) as error:
            self._take_back(error.printed if isinstance(error, Interrupted) else "", start)
            path.unlink(missing_ok=True)
            raise KeyboardInterrupt from None
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        job = self.job_class(folder=self.folder, job_id=number, tasks=list(range(self._num_tasks())))
        job.paths.move_temporary_file(path, "submission_file", keep_as_symlink=True)
        return job

    def _submit(self, path: Path, start: float) -> str:
        silent = False
        while True:
            try:
                number = self._number(run_sbatch(self._make_submission_command(path)))
            except NotAnswering as error:
                silent = True
                console.say(f"{error.message}; looking whether it took the job ...")
                found = self._sent_after_all(start, error.message)
                if found:
                    return found
                continue
            except BackendError as error:
                if not error.message.startswith(_REFUSED):
                    raise
                raise _refused(error.message.removeprefix(_REFUSED)) from None
            if silent:
                self._end_others(start, number)
            return number

    def _number(self, printed: str) -> str:
        try:
            return str(self._get_job_id_from_submission_command(printed))
        except FailedSubmissionError:
            raise NotAnswering(f"sbatch names no job ({printed.strip()[:200] or 'it printed nothing'})") from None

    def _find(self, since: float) -> list[str]:
        return find_submitted(self.parameters["job_name"], self.owner, self.ticket, since)

    def _sent_after_all(self, start: float, words: str) -> str | None:
        """A controller may take a job and be cut off before it says so: nothing is sent again before it was asked."""
        empty = 0
        # What waited for the controller longest is not what it does first: one answer may be too early.
        while empty < _LOOKS:
            time.sleep(_PAUSE_S)
            with contextlib.suppress(NotAnswering):
                found = self._find(start)
                if found:
                    return found[-1]
                empty += 1
                continue
            if time.time() - start > PATIENCE_S:
                raise SubmissionUnknown(f"whether Slurm took the job is not known: {words}")
        return None

    def _take_back(self, printed: str, start: float) -> None:
        """End the job of a submission that was interrupted, as soon as it is known which it is.

        Raises:
            SubmissionUnknown: it is not known in time.
        """
        console.say("Interrupted; taking back what was sent ...")
        deadline, empty = time.monotonic() + _INTERRUPTED_S, 0
        while empty < _LOOKS:
            try:
                found = [self._number(printed)] if printed else self._find(start)
                if found:
                    _end(found)
                    return
                empty += 1
            except NotAnswering as error:
                if time.monotonic() > deadline:
                    words = f"interrupted, and whether Slurm took the job is not known: {error.message}"
                    raise SubmissionUnknown(words) from None
            time.sleep(1.0)

    def _end_others(self, start: float, job_id: str) -> None:
        """A request that was given up may have been answered after all, behind our back."""
        with contextlib.suppress(BackendError):
            others = [job for job in self._find(start) if job != job_id]
            if others:
                ask("scancel", "--quiet", *others)


def _end(numbers: list[str]) -> None:
    """End jobs that were made a moment ago.

    Raises:
        NotAnswering: the controller is silent.
    """
    try:
        ask("scancel", "--quiet", *numbers)
    except NotAnswering:
        raise
    except BackendError as error:
        console.say(error.message)  # it has ended by itself


def _refused(words: str) -> BackendError:
    lowered = words.lower()
    for sign, hint in _HINTS.items():
        if sign in lowered:
            return BackendError(_REFUSED + words, hint)
    return BackendError(_REFUSED + words, "What the cluster offers: llavajob doctor --on PROFILE")


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
