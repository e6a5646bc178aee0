"""The batch script's text and the profile's keys, where no Slurm is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.backends.slurm.settings import parse_memory_mb, parse_time_s, slurm_memory, slurm_time
from tests.shell import Shell

Write = Callable[..., str]
RECORDS = Path(__file__).parent / "records"
EVERY_KEY = {
    "partition": "main,high",
    "account": "vision",
    "qos": "long",
    "constraint": "a100&nvlink",
    "gpus": "a100:8",
    "mem": "960G",
    "cpus": 96,
    "time": "2-12:00:00",
    "nodelist": "node[1-4]",
    "exclude": "node[3,9]",
    "exclusive": True,
    "reservation": "maintenance",
    "comment": 'it\'s for "us"',
    "mail_user": "me@example.org",
    "mail_type": "END,FAIL",
    "wckey": "key",
    "modules": ["gcc/12", "cuda/12.4 beta"],
    "setup": ["source '/opt/my site/setup.sh'", "ulimit -n 65536"],
    "container": "--container-image=/images/llava.sqsh --container-mounts='/data:/my data'",
    "extra": {"switches": "1@5:00", "nice": 100, "overcommit": True, "ntasks_per_core": 1},
}


def profile(shell: Shell, **place: Any) -> None:
    """Write a project's file with one profile named site."""
    values = {"backend": "slurm", "python": "/opt/py env/bin/python", "runs": "/shared/my runs", **place}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"site": values}}))


def rendered(shell: Shell, recipe: str, *options: str) -> str:
    """What would be sent, with this machine's own paths taken out."""
    text = shell("submit", recipe, "--on", "site", "--name", "run", "--dry-run", *options).out
    return text.replace(sys.executable, "PYTHON").replace(str(shell.folder).replace("'", "'\"'\"'"), "FOLDER")


@pytest.mark.parametrize("name", ["every_key", "no_key"])
def test_the_script_of_a_training_is_the_stored_one(shell: Shell, recipe: Write, name: str) -> None:
    profile(shell, slurm=EVERY_KEY if name == "every_key" else {}, environment={"SITE": "it's here"})
    asked = recipe(resources={"nodes": 2}, environment={})
    assert rendered(shell, asked) == (RECORDS / f"{name}.sh").read_text()


def test_shards_get_their_share_of_a_node(shell: Shell, pipeline: Write) -> None:
    profile(shell, slurm={**EVERY_KEY, "container": "", "gpus": "", "gres": "gpu:a100:8"})
    parts = rendered(shell, pipeline(), "--set", "stages.score.eval.shards=20").split("## ")[1:]
    learn, merge, score, score_merge = [set(part.splitlines()) for part in parts]
    assert learn >= {"#SBATCH --gres=gpu:a100:8", "#SBATCH --cpus-per-task=96", "#SBATCH --mem=960G"}
    assert score >= {
        "#SBATCH --array=0-19%16", "#SBATCH --gres=gpu:a100:1", "#SBATCH --cpus-per-task=12", "#SBATCH --mem=120G",
        "#SBATCH --nodes=1", "#SBATCH --no-requeue",
    }  # fmt: skip
    for part in (merge, score_merge):
        assert "#SBATCH --nodes=1" in part and not any("gres" in line or "gpus" in line for line in part)
    assert "#SBATCH --exclusive" in learn and "#SBATCH --exclusive" not in score
    assert "#SBATCH --requeue" in learn and not any("requeue" in line for line in score if "no-requeue" not in line)


def test_gpus_of_the_profile_are_the_recipes_unless_it_says_how_many(shell: Shell, recipe: Write) -> None:
    profile(shell, slurm={"gpus": "h100:4"})
    assert "#SBATCH --gpus-per-node=h100:4\n" in rendered(shell, recipe())
    assert "#SBATCH --gpus-per-node=h100:2\n" in rendered(shell, recipe(), "--gpus-per-node", "2")
    assert "gpus" not in rendered(shell, recipe(), "--gpus-per-node", "0")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"partiton": "a"}, "unknown key 'slurm.partiton'; did you mean 'partition'?"),
        ({"time": "soon"}, "slurm.time is 'soon'; a time such as 90m, 12h, 2-00:00:00 or a number of minutes"),
        ({"mem": "lots"}, "slurm.mem is 'lots'; a size such as 480G or 64000M is needed"),
        ({"gpus": "8xa100"}, "a number, a type, or both are needed: 8, a100, a100:8"),
        ({"gpus": 8, "gres": "gpu:8"}, "slurm.gres and slurm.gpus say the same; one of them is needed"),
        ({"cpus": "many"}, "slurm.cpus"),
        ({"exclusive": "maybe"}, "slurm.exclusive"),
        ({"extra": {"requeue": True}}, "slurm.extra.requeue is set by llavajob and cannot be changed"),
        ({"extra": {"open_mode": "truncate"}}, "slurm.extra.open_mode is set by llavajob"),
        ({"extra": {"signal": "USR1@10"}}, "slurm.extra.signal is set by llavajob"),
        ({"extra": {"ntasks-per-node": 4}}, "slurm.extra.ntasks-per-node is set by llavajob"),
        ({"extra": {"qos": "long"}}, "slurm.extra.qos has a key of its own: slurm.qos"),
        ({"extra": {"mail-user": "me"}}, "slurm.extra.mail-user has a key of its own: slurm.mail_user"),
        ({"extra": {"--requeue": True}}, "slurm.extra.--requeue"),
    ],
)
def test_a_wrong_key_says_which_are_right(shell: Shell, recipe: Write, place: dict[str, Any], words: str) -> None:
    profile(shell, slurm=place)
    said = shell("submit", recipe(), "--on", "site", "--dry-run", check=2).err
    assert words in said and "llavajob.yaml:" in said


def test_keys_of_slurm_are_unknown_to_other_backends(shell: Shell, recipe: Write) -> None:
    values = {"profiles": {"here": {"backend": "local", "slurm": {"time": "1h"}}}}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump(values))
    assert "unknown key 'slurm'; allowed: backend" in shell("profiles", check=2).err


@pytest.mark.parametrize(("limit", "lead_s"), [("", 600), ("12h", 600), ("10m", 300), ("1m", 30)])
def test_the_signal_leaves_time_to_save_but_not_more_than_half(
    shell: Shell, recipe: Write, limit: str, lead_s: int
) -> None:
    profile(shell, slurm={"time": limit})
    text = rendered(shell, recipe(retries={"grace_s": 600}))
    assert f"#SBATCH --signal=USR2@{lead_s}\n" in text


@pytest.mark.parametrize(
    ("text", "seconds", "written"),
    [
        ("90m", 5400, "01:30:00"),
        ("90min", 5400, "01:30:00"),
        ("12h", 43200, "12:00:00"),
        ("1h30m", 5400, "01:30:00"),
        ("45s", 45, "00:00:45"),
        ("2d", 172800, "2-00:00:00"),
        ("2d12h", 216000, "2-12:00:00"),
        ("30", 1800, "00:30:00"),
        ("30:15", 1815, "00:30:15"),
        ("1:30:15", 5415, "01:30:15"),
        ("2-12", 216000, "2-12:00:00"),
        ("2-12:30", 217800, "2-12:30:00"),
        ("2-00:00:00", 172800, "2-00:00:00"),
        ("UNLIMITED", None, "UNLIMITED"),
        ("infinite", None, "UNLIMITED"),
    ],
)
def test_time_limits_in_every_notation(text: str, seconds: int | None, written: str) -> None:
    assert parse_time_s(text) == seconds
    assert slurm_time(text) == written


@pytest.mark.parametrize("text", ["", "soon", "1.5h", "-3", "3 hours", "1:2:3:4", "h"])
def test_what_is_no_time_limit(text: str) -> None:
    with pytest.raises(ValueError, match="90m, 12h"):
        parse_time_s(text)


@pytest.mark.parametrize(
    ("text", "share", "megabytes", "written"),
    [
        ("480G", 1, 491520, "480G"),
        ("480GB", 8, 491520, "60G"),
        ("64000M", 1, 64000, "64000M"),
        ("64000", 3, 64000, "21333M"),
        ("1T", 1, 1048576, "1024G"),
        ("2048k", 1, 2, "2M"),
    ],
)
def test_sizes_of_memory(text: str, share: int, megabytes: int, written: str) -> None:
    assert parse_memory_mb(text) == megabytes
    assert slurm_memory(text, share) == written
