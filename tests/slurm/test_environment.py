"""The script that was shown is what Slurm does, whatever the shell holds that sends it, and wherever it runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from tests.shell import Shell, recipe, shell
from tests.slurm.bed import Cluster
from tests.slurm.jobs import number, shown

__all__ = ["recipe", "shell"]
Write = Callable[..., str]
SMALL = ("--nodes", "1", "--set", "slurm.mem=500M")
CALLER = {
    "SBATCH_PARTITION": "high", "SBATCH_TIMELIMIT": "3", "SBATCH_JOB_NAME": "other", "SBATCH_NO_REQUEUE": "1",
    "SBATCH_EXPORT": "NONE", "SBATCH_WAIT": "1", "SBATCH_SIGNAL": "INT@1", "SBATCH_COMMENT": "mine",
    "SBATCH_ARRAY_INX": "0-3", "SBATCH_OUTPUT": "/dev/null", "SQUEUE_USERS": "nobody", "SQUEUE_STATES": "FAILED",
    "SQUEUE_FORMAT": "%j", "SQUEUE_PARTITION": "short", "SACCT_FORMAT": "State", "SCANCEL_STATE": "SUSPENDED",
    "SCANCEL_USER": "nobody", "SLURM_MEM_PER_CPU": "7", "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_EXPORT_ENV": "NONE", "SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_PROCID": "3",
}  # fmt: skip


def test_nothing_of_the_callers_shell_changes_a_run(shell: Shell, recipe: Write, bed: Cluster) -> None:
    ask = ("--on", "slurm", *SMALL, "--set", "slurm.partition=main", "--set", "slurm.time=2h")
    shell("submit", recipe(), *ask, "--name", "plain", **CALLER)
    job = shown(bed, number(shell, "plain"))
    assert (job["Partition"], job["TimeLimit"], job["JobName"], job["Requeue"]) == ("main", "02:00:00", "plain", "1")
    shell.until(lambda: shell("status", "plain", "--json", **CALLER).json["state"] == "SUCCEEDED", "its end")
    shell("submit", recipe(), *ask, "--name", "ended", STANDIN_STEPS="900", **CALLER)
    shell.wait_step("ended", 2)
    shell("cancel", "ended", **CALLER)
    assert shell.status("ended")["state"] == "CANCELLED"


def test_runs_are_sent_from_inside_of_every_kind_of_job(shell: Shell, recipe: Write, bed: Cluster) -> None:
    """A task of an array, a job with a size of its own, a step, an allocation, a process of another run."""
    name = recipe()

    def submit(run: str) -> str:
        return shlex.join([*shell.command, "submit", name, "--on", "slurm", *SMALL, "--name", run])

    inside = ("--output=/dev/null", f"--chdir={shell.folder}", "--mem-per-cpu=200M")
    bed.call("sbatch", "--wait", "--array=7", *inside, f"--wrap={submit('array')}")
    step = f"srun --overlap {submit('step')}"
    bed.call("sbatch", "--wait", "--ntasks=1", "--cpus-per-task=2", *inside, f"--wrap={submit('batch')} && {step}")
    bed.call("salloc", "--mem-per-cpu=200M", f"--chdir={shell.folder}", *shlex.split(submit("salloc")))
    other = {
        "LLAVAJOB_RUN": "/runs/other", "LLAVAJOB_RUN_ID": "0" * 16, "LLAVAJOB_ATTEMPT": "7", "PET_NNODES": "4",
        "LLAVAJOB_NODE": "3", "PET_MASTER_ADDR": "nowhere", "RANK": "9", "WORLD_SIZE": "16", "PMI_RANK": "2",
    }  # fmt: skip
    shell("submit", name, "--on", "slurm", *SMALL, "--name", "run", **other)
    ends = {run: shell.wait(run, most_s=120) for run in ("array", "batch", "step", "salloc", "run")}
    assert {run: end["state"] for run, end in ends.items()} == dict.fromkeys(ends, "SUCCEEDED"), ends
    assert {end["attempt"] for end in ends.values()} == {0}
