"""Running sbatch: without the caller's options, and not cut off by a Ctrl-C before it has said what it did."""

from __future__ import annotations

import subprocess

from launcher.backends.slurm.client import LONGEST_CALL_S, answer_of, not_on_path, too_slow
from launcher.backends.slurm.client_environment import job_environment
from launcher.errors import BackendError, NotAnswering
from launcher.failure import decode_exit

_SUBMITTED = "Submitted batch job "


class Interrupted(Exception):
    """Ctrl-C was pressed while sbatch ran; ``printed`` is what it printed, empty where it failed."""

    def __init__(self, printed: str) -> None:
        super().__init__("interrupted")
        self.printed = printed


def run_sbatch(command: list[str]) -> str:
    """Run sbatch and return what it prints.

    Raises:
        Interrupted: Ctrl-C was pressed meanwhile.
        NotAnswering: the controller does not answer; it may have taken the job.
        BackendError: sbatch is not there, or Slurm refused, with its own words.
    """
    try:
        # In a session of its own: a Ctrl-C in the terminal would end it between the request and the answer.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", env=job_environment(), start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise not_on_path(command[0]) from None
    with process:
        try:
            done = _finish(process, command)
        except KeyboardInterrupt:
            raise Interrupted(_printed_anyway(process, command)) from None
    return _answer(done)


def _answer(done: subprocess.CompletedProcess[str]) -> str:
    if _SUBMITTED in done.stdout:
        return done.stdout  # whatever failed afterwards, there is a job
    if done.returncode < 0 or (done.returncode and not (done.stdout + done.stderr).strip()):
        raise NotAnswering(f"sbatch ended without an answer ({decode_exit(done.returncode)})")
    return answer_of("sbatch", done)


def _printed_anyway(process: subprocess.Popen[str], command: list[str]) -> str:
    try:
        return _answer(_finish(process, command))
    except BackendError:
        return ""


def _finish(process: subprocess.Popen[str], command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        out, err = process.communicate(timeout=LONGEST_CALL_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise too_slow("sbatch") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)
