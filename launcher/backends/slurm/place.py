"""Which cluster this is, and whether a run lives on it: what another cluster does not know is not gone."""

from __future__ import annotations

import os
from collections.abc import Mapping

from launcher.backends.slurm.client import ask
from launcher.backends.slurm.client_environment import CLUSTERS
from launcher.errors import BackendError, NotAnswering, RequestError

_here: dict[str, dict[str, str]] = {}


def place_here() -> dict[str, str]:
    """Return the cluster that Slurm's commands talk to, and its controller; empty where Slurm has no words for that.

    Raises:
        NotAnswering: the controller is silent.
    """
    asked = f"{os.environ.get('SLURM_CONF')}|{os.environ.get(CLUSTERS)}"
    if asked not in _here:
        try:
            _here[asked] = _read(ask("scontrol", "show", "config"))
        except NotAnswering:
            raise
        except BackendError:
            return {}
    return _here[asked]


def require_one_cluster() -> None:
    """Refuse a choice among clusters that sbatch would make, because nobody would know where the run is.

    Raises:
        RequestError: SLURM_CLUSTERS names more than one.
    """
    named = os.environ.get(CLUSTERS, "")
    if "," in named or named == "all":
        hint = f"Name the one to send to: export {CLUSTERS}=NAME. Which there are: sacctmgr show clusters"
        raise RequestError(f"{CLUSTERS} names several clusters ({named})", hint)


def difference(recorded: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Say that a run lives on another cluster than this; empty: on this one, or it is not known."""
    there_name, here_name = recorded.get("cluster", ""), here.get("cluster", "")
    if there_name and here_name and there_name != here_name:
        return f"runs on cluster '{there_name}'; asked here is cluster '{here_name}'"
    there_control, here_control = recorded.get("controller", ""), here.get("controller", "")
    if there_control and here_control and there_control != here_control:
        return (
            f"runs on the cluster '{there_name}' of {there_control}; "
            f"asked here is another cluster '{here_name}', of {here_control}"
        )
    return ""


def _read(text: str) -> dict[str, str]:
    rows = (line.partition("=") for line in text.splitlines() if "=" in line)
    values = {name.strip(): value.strip() for name, _, value in rows}
    cluster = values.get("ClusterName", "")
    # Before 18.08 there was one ControlMachine. A backup that is added later makes no other cluster.
    host = values.get("SlurmctldHost[0]") or values.get("SlurmctldHost") or values.get("ControlMachine", "")
    if not cluster:
        return {}
    return {"cluster": cluster, "controller": f"{host}:{values.get('SlurmctldPort', '')}"}
