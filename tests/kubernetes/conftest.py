"""Every test in this folder has a real Kubernetes with the training operator behind KUBECONFIG.

It is the test bed, where the machine can carry one. LLAVAJOB_TEST_INSTALL=1 allows building the bed's programs;
LLAVAJOB_TEST_KUBECONFIG=FILE takes the cluster of that kubeconfig instead: a bed that was brought up by hand, or any
with the training operator whose pods may mount this host's folders.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.bed import Bed, Cluster, missing
from tests.kubernetes.build import build, missing_programs, missing_tools
from tests.slurm.bed import BedError, until

# Read before any test runs: each test loses the variables that begin with LLAVAJOB_.
GIVEN = os.environ.get("LLAVAJOB_TEST_KUBECONFIG")
INSTALL = os.environ.get("LLAVAJOB_TEST_INSTALL") == "1"
ACCOUNT_LIMIT_S = 30.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder; building the programs does not count as a test's time."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.kubernetes)
            item.add_marker(pytest.mark.timeout(600, func_only=True))


def unready() -> str | None:
    """Why the test bed cannot start here, or None; builds its programs where that is allowed."""
    if reason := missing():
        return reason
    if not INSTALL or not missing_programs():
        return missing_programs()
    if reason := missing_tools():
        return reason
    try:
        build()
    except BedError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The session's cluster; the test bed has to be gone without a trace afterwards."""
    if GIVEN:
        yield Cluster({"KUBECONFIG": str(Path(GIVEN).absolute())})
        return
    reason = unready()
    if reason:
        pytest.skip(f"no Kubernetes test bed here: {reason}")
    started = Bed()
    started.start()
    yield started
    started.stop()
    assert not started.leftovers()


@pytest.fixture
def own_bed(cluster: Cluster) -> Bed:
    """The session's cluster where its daemons are the test's to stop and start."""
    if not isinstance(cluster, Bed):
        pytest.skip("needs the test bed: the daemons of LLAVAJOB_TEST_KUBECONFIG are not ours to stop")
    return cluster


@pytest.fixture(autouse=True)
def use_cluster(cluster: Cluster, own_place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lead Kubernetes' clients to the cluster; afterwards start what the test left stopped."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield
    if isinstance(cluster, Bed):
        cluster.mend()


@pytest.fixture
def namespace(cluster: Cluster, use_cluster: None) -> Iterator[str]:
    """The test's own namespace; it is deleted afterwards with all that is in it."""
    name = f"test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)

    def pods_may_start() -> bool:
        try:
            return bool(cluster.get("serviceaccount", "default", name))
        except BedError:
            return False

    until(pods_may_start, ACCOUNT_LIMIT_S, lambda: f"{name} has no service account")
    yield name
    if isinstance(cluster, Bed):
        cluster.mend()
    cluster.clear(name)
