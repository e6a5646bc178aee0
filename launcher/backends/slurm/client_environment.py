"""The environment of Slurm's commands, and of the job that sbatch hands it on to.

Slurm's commands take options from variables: SBATCH_PARTITION beats the script, SQUEUE_USERS hides jobs, SCANCEL_STATE
spares some. And sbatch hands the caller's whole environment to the job: inside another job, or in a process of another
run, that is the other's size, array index, CPU binding, rendezvous and attempt. What is sent is what the rendered
script says, whatever the shell holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

PASSES = frozenset({
    "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "LLAVAJOB_RUNS", "LLAVAJOB_PROFILES", "LLAVAJOB_UMASK",
})  # fmt: skip
"""What may pass although its prefix may not: which cluster to talk to and as whom, and where runs and profiles are,
and what umask the shell has."""
CLUSTERS = "SLURM_CLUSTERS"
"""The cluster of several that commands talk to. It passes as well, but not into jobs: a node asks its own cluster."""

_SLURM = (
    "SLURM_", "_SLURM_", "SLURMD_", "SLURMRESTD_", "SPANK_", "SBATCH_", "SRUN_", "SALLOC_", "SATTACH_", "SBCAST_",
    "SQUEUE_", "SACCT_", "SACCTMGR_", "SCANCEL_", "SCONTROL_", "SCRONTAB_", "SDIAG_", "SINFO_", "SPRIO_", "SREPORT_",
    "SSHARE_", "SSTAT_", "STRIGGER_",
)  # fmt: skip
_OTHER_JOB = (
    "LLAVAJOB_", "SUBMITIT_", "PET_", "TORCHELASTIC_", "PMI_", "PMI2_", "PMIX_", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_",
    "PALS_", "MPI_LOCAL", "HYDI_",
)  # fmt: skip
_OTHER_RANK = frozenset({
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
})  # fmt: skip
_OTHER_DEVICES = frozenset({"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"})
"""Chosen by the user on a login node, but by the scheduler inside of a job or a run."""


def client_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for commands that ask Slurm, or tell it something: words in English, times in seconds."""
    caller = os.environ if environment is None else environment
    kept = job_environment(caller)
    if CLUSTERS in caller and not _inside(caller):
        kept[CLUSTERS] = caller[CLUSTERS]
    return {**kept, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}


def job_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for sbatch, which hands it on to the job."""
    caller = os.environ if environment is None else environment
    kept = {name: value for name, value in caller.items() if _passes(name)}
    if _inside(caller):
        for name in _OTHER_DEVICES:
            kept.pop(name, None)
        # Made for the other job, and removed with it.
        job_id = caller.get("SLURM_JOB_ID", "")
        if job_id in re.findall("[0-9]+", kept.get("TMPDIR", "")):
            del kept["TMPDIR"]
    return kept


def ignored_options(environment: Mapping[str, str] | None = None) -> list[str]:
    """Name the variables of the caller by which sbatch would have taken options."""
    caller = os.environ if environment is None else environment
    return sorted(name for name in caller if name.startswith("SBATCH_"))


def _passes(name: str) -> bool:
    if name in PASSES:
        return True
    return not name.startswith((*_SLURM, *_OTHER_JOB)) and name not in _OTHER_RANK


def _inside(environment: Mapping[str, str]) -> bool:
    """Whether this process belongs to a job or to another run."""
    return "SLURM_JOB_ID" in environment or "LLAVAJOB_RUN" in environment
