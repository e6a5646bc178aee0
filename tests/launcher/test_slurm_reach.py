"""Paths on a machine's own disk are told where jobs of a cluster would look for them; shared ones are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.backends.slurm import reach
from launcher.backends.slurm.reach import JobReach
from tests.shell import Shell

# A login node, as its kernel tells it; fields before the mount's place and after the dash matter.
MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:5 / /tmp rw - ext4 /dev/sda2 rw
3 1 0:6 / /dev/shm rw,nosuid shared:3 - tmpfs tmpfs rw
4 1 0:7 / /home rw,relatime shared:9 - nfs4 server:/home rw
5 2 0:8 / /tmp/shared\\040place rw - lustre mds@tcp:/fs rw
6 1 0:9 / /gpfs rw - gpfs gpfs rw
7 1 0:10 / /fast rw - fuse.juicefs JuiceFS:x rw
8 1 0:11 / /ramdisk rw - tmpfs tmpfs rw
9 1 0:12 / /ramdisk rw - nfs server:/over rw
10 1 0:13 / /mem rw - tmpfs tmpfs rw
"""


@pytest.fixture(autouse=True)
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(reach, "_MOUNTS", tmp_path / "mountinfo")
    monkeypatch.setattr(reach, "_resolved", lambda path: path)
    monkeypatch.delenv("TMPDIR", raising=False)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/tmp/you/data", "is below /tmp, which each node has for itself"),
        ("/var/tmp/data", "is below /var/tmp"),
        ("/dev/shm/data", "is in this machine's memory (tmpfs)"),
        ("/mem/data", "is in this machine's memory (tmpfs)"),
        ("/run/user/1000", "is below /run"),
    ],
)
def test_what_each_node_has_for_itself(path: str, words: str) -> None:
    assert words in JobReach().doubt(Path(path))
    assert JobReach().unseen(Path(path)) == JobReach().lost(Path(path)) == "", "the only node may be this one"


@pytest.mark.parametrize(
    "path", ["/home/you/tmp", "/tmp/shared place/data", "/gpfs/a", "/fast/a", "/ramdisk/a", "/data/a", "/tmpfoo/a"]
)
def test_what_nodes_share_or_may_share(path: str) -> None:
    """A disk of this machine outside the known places may be exported to the nodes."""
    assert JobReach().doubt(Path(path)) == ""


def test_the_users_own_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/scratch/local")
    assert "is below /scratch/local" in JobReach().doubt(Path("/scratch/local/a"))
    monkeypatch.setenv("TMPDIR", "relative")
    assert JobReach().doubt(Path("/scratch/local/a")) == ""


def test_a_link_counts_as_what_it_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
    monkeypatch.setattr(reach, "_MOUNTS", tmp_path / "mountinfo")
    (tmp_path / "link").symlink_to("/opt")
    assert JobReach().doubt(tmp_path / "link" / "data") == ""


def test_the_plan_tells_it(shell: Shell) -> None:
    """This machine's own folders: tests lie below /tmp or in memory."""
    told = shell(
        "submit", "convert", "--on", "slurm", "--name", "r", "--dry-run", "--set", f"convert.source={shell.folder}",
        LLAVAJOB_RUNS="/dev/shm/llavajob-test-runs",
    ).err  # fmt: skip
    assert "Note: the run's folder /dev/shm/llavajob-test-runs/r is in this machine's memory (tmpfs)" in told
