"""What doctor makes of answers that real clusters give and the test bed does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.backends.slurm.arrays import largest_array
from launcher.backends.slurm.gres import count_gpus
from tests.shell import Shell, shell

__all__ = ["shell"]

ANSWERS = """\
#!/bin/sh
case "$(basename "$0") $1 $2" in
  "sinfo "*) cat "$ROWS" ;;
  "scontrol show config") printf 'MaxArraySize            = 401\\nKillWait                = 30 sec\\n' ;;
  "srun "*) echo 'srun: error: Unable to allocate resources: Requested nodes are busy' >&2; exit 1 ;;
  *) echo 'slurm-wlm 22.05.8 is UP' ;;
esac
"""


@pytest.fixture
def cluster(shell: Shell, own_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands in PATH, with one file for what sinfo says; return that file."""
    programs = own_place / "programs"
    programs.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol", "sacct", "sacctmgr", "sinfo"):
        (programs / name).write_text(ANSWERS)
        (programs / name).chmod(0o755)
    rows = own_place / "rows"
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("ROWS", str(rows))
    return rows


def examine(shell: Shell, cluster: Path, offered: list[str], values: dict[str, Any], **place: Any) -> dict[str, Any]:
    cluster.write_text("".join(f"main*|up|infinite|4|64|512000|{one}\n" for one in offered))
    profile = {"backend": "slurm", "slurm": place, "values": values}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"site": profile}}))
    found = shell("doctor", "--on", "site", "--json", check=None).json
    return {finding["what"]: finding for finding in found}


TWO_TYPES = "gpu:a100:4(S:0-1),gpu:v100:2(S:0,2)"


@pytest.mark.parametrize(
    ("gres", "place", "good", "seen"),
    [
        ([TWO_TYPES], {"gpus": "v100:2"}, True, "gpu:a100:4, gpu:v100:2"),
        ([TWO_TYPES], {"gres": "gpu:v100:2"}, True, "gpu:a100:4, gpu:v100:2"),
        ([TWO_TYPES], {"gpus": "v100:4"}, False, "v100:4 asked for, nodes have gpu:a100:4, gpu:v100:2"),
        ([TWO_TYPES], {"gpus": "h100"}, False, "h100 asked for, nodes have gpu:a100:4, gpu:v100:2"),
        ([TWO_TYPES], {"gpus": 6}, True, "gpu:a100:4, gpu:v100:2"),
        (["gpu:8,nvme:1"], {"gpus": 8}, True, "gpu:8"),
        (["gpu:4,nvme:1600"], {"gpus": 99}, False, "99 asked for, nodes have gpu:4"),
        (["gpu:a100:4,shard:a100:1"], {"gpus": "a100:4"}, True, "gpu:a100:4"),
        (["mps:400,shard:64"], {"gpus": 1}, False, "1 asked for, nodes have none"),
        (["(null)", "gpu:a100:2", "gpu:v100:8"], {"gpus": "a100:4"}, False, "a100:4 asked for, nodes have "),
        (["(null)", "gpu:a100:2", "gpu:v100:8"], {"gpus": "v100:4"}, True, "gpu:a100:2; gpu:v100:8"),
        (["(null)"], {}, None, "nodes have none"),
    ],
)
def test_gpus_that_nodes_have(
    shell: Shell, cluster: Path, gres: list[str], place: dict[str, Any], good: bool | None, seen: str
) -> None:
    found = examine(shell, cluster, gres, {}, **place)["gpus"]
    assert found["good"] is good and found["seen"].startswith(seen)


def test_arrays_and_partitions_that_a_cluster_takes(shell: Shell, cluster: Path) -> None:
    found = examine(shell, cluster, ["(null)"], {"eval": {"shards": 402}}, partition="main,nowhere")
    assert found["arrays"]["good"] is False and found["arrays"]["seen"].startswith("402 shards asked for, an array")
    assert found["partition"]["good"] is False and found["partition"]["seen"] == "there is none named nowhere"
    found = examine(shell, cluster, ["(null)"], {"eval": {"shards": 401}}, partition="main")
    assert found["arrays"] == {"what": "arrays", "seen": "up to 401 shards in an evaluation (MaxArraySize)",
                               "good": True, "cure": ""}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("gpu", {"": 1}),
        ("gpu:a100", {"a100": 1}),
        ("gres/gpu=8", {"": 8}),
        ("gres/gpu:a100=4,gres/shard=8", {"a100": 4}),
        ("gpu:no_consume:2", {"": 2}),
        ("gpu:tesla:no_consume:2K", {"tesla": 2048}),
        ("gpu:1g.5gb:7(S:0-1),gpu:3g.20gb:1", {"1g.5gb": 7, "3g.20gb": 1}),
        ("gpu:a100:4(S:0),gpu:a100:4(S:1)", {"a100": 8}),
        ("gpu:2(IDX:0,1),nic:1", {"": 2}),
        ("gpus:3,mygpu:2,craynetwork:4", {}),
        ("(null)", {}),
        ("", {}),
        ("N/A", {}),
    ],
)
def test_lists_of_generic_resources(text: str, counts: dict[str, int]) -> None:
    assert count_gpus(text) == counts


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"MaxArraySize": "1001"}, 1001),
        ({"MaxArraySize": "1001", "SchedulerParameters": "bf_interval=2, max_array_tasks=500"}, 500),
        ({"MaxArraySize": "(null)"}, None),
        ({}, None),
    ],
)
def test_how_many_members_an_array_may_have(config: dict[str, str], most: int | None) -> None:
    assert largest_array(config) == most
