"""Secrets on Slurm: the job's processes have them, its script and what the controller shows do not."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.shell import Shell, recipe, shell
from tests.slurm.bed import Cluster
from tests.slurm.jobs import enough, number, start_now, wait_requeued

__all__ = ["recipe", "shell"]
Write = Callable[..., str]
VALUE = "correct-horse-7"
LINES = "first line\nsecond line $(false) 'quoted'"


def start_environment(shell: Shell, attempt: int, node: int) -> dict[str, str]:
    """The environment that a node's agent was started with."""
    path = shell.runs / f"kept/attempts/{attempt}/started-{node}.json"
    return dict(json.loads(path.read_text()))


def test_secrets_reach_the_processes_alone_and_outlive_a_requeue(
    shell: Shell, recipe: Write, bed: Cluster, own_place: Path
) -> None:
    key = own_place / "key"
    key.write_text(LINES + "\n")
    secrets = {"HF_TOKEN": "MY_TOKEN", "SITE_KEY": str(key)}
    values = {"profiles": {"site": {"backend": "slurm", "slurm": {"secrets": secrets}}}}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump(values))
    ask = ("submit", recipe(), "--on", "site", "--name", "kept")
    assert "the secret HF_TOKEN is missing" in shell(*ask, check=2).err
    before = os.umask(0o022)
    shell(*ask, MY_TOKEN=VALUE, STANDIN_STEPS="100000")
    os.umask(before)
    job = number(shell, "kept")
    shell.wait_step("kept", 3)
    for options in (("show", "job", "-dd", job), ("write", "batch_script", job, "-")):
        shown = bed.call("scontrol", *options)
        assert VALUE not in shown and "second line" not in shown
    bed.call("scontrol", "requeue", job)
    wait_requeued(shell, "kept")
    start_now(bed, job)
    shell.until(lambda: (shell.look("kept")["attempt"] or 0) == 1, "the next attempt")
    enough(shell.runs / "kept")
    assert shell.wait("kept")["state"] == "SUCCEEDED"
    for attempt in (0, 1):
        for node in (0, 1):
            seen = start_environment(shell, attempt, node)
            assert (seen["HF_TOKEN"], seen["SITE_KEY"]) == (VALUE, LINES)
            assert seen["LLAVAJOB_UMASK"] == "022"
    (shell.runs / "kept/enough").unlink()  # the test's own
    for path in (shell.runs / "kept").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), (path, oct(mode))
        if path.is_file() and not path.name.startswith("started-"):
            assert VALUE.encode() not in path.read_bytes(), path
