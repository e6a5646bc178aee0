"""Every test in this folder has a real Slurm behind SLURM_CONF, and leaves it empty.

It is the test bed, where the machine can carry one. LLAVAJOB_TEST_INSTALL=1 allows installing the bed's packages;
LLAVAJOB_TEST_SLURM=system takes the Slurm that SLURM_CONF and PATH lead to instead (its nodes have to see pytest's
folder: --basetemp).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.bed import Bed, Cluster, install, missing, until

# Read before any test runs: each test loses the variables that begin with LLAVAJOB_.
SYSTEM = os.environ.get("LLAVAJOB_TEST_SLURM") == "system"
INSTALL = os.environ.get("LLAVAJOB_TEST_INSTALL") == "1"
# A client such as srun takes a moment to notice that its job is gone.
SETTLE_LIMIT_S = 15.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and give them time to requeue."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.timeout(600))


def system_cluster() -> Cluster:
    """The Slurm of this environment; its jobs are somebody's, so tests touch only their own."""
    if shutil.which("sinfo") is None:
        pytest.skip("LLAVAJOB_TEST_SLURM=system, but there is no Slurm in PATH")
    return Cluster({name: value for name, value in os.environ.items() if name == "SLURM_CONF"})


@pytest.fixture(scope="session")
def bed() -> Iterator[Cluster]:
    """The session's cluster; the test bed has to be gone without a trace afterwards."""
    if SYSTEM:
        yield system_cluster()
        return
    reason = missing()
    if reason and INSTALL:
        reason = install() or missing()
    if reason:
        pytest.skip(f"no Slurm test bed here: {reason}")
    started = Bed()
    started.start()
    folder = started.folder
    yield started
    started.stop()
    assert not started.leftovers() and not folder.exists()


@pytest.fixture
def own_bed(bed: Cluster) -> Bed:
    """The session's cluster where its daemons are the test's to stop and start."""
    if not isinstance(bed, Bed):
        pytest.skip("needs the test bed: the daemons of LLAVAJOB_TEST_SLURM=system are not ours to stop")
    return bed


@pytest.fixture(autouse=True)
def use_bed(bed: Cluster, own_place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lead Slurm's commands to the cluster; afterwards mend it, cancel the test's jobs and let no process stay."""
    for name, value in bed.environment.items():
        monkeypatch.setenv(name, value)
    yield
    if not isinstance(bed, Bed):
        bed.cancel_jobs(below=own_place)
        return
    bed.mend()
    bed.cancel_jobs()
    try:
        until(lambda: not bed.job_processes(), SETTLE_LIMIT_S, lambda: f"left by the test: {bed.job_processes()}")
    finally:
        bed.kill_job_processes()
