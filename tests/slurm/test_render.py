"""What is shown before a submission is what Slurm gets, and it works there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.shell import Shell, pipeline, recipe, shell
from tests.slurm.bed import Cluster
from tests.slurm.jobs import number, rank_log, shown

__all__ = ["pipeline", "recipe", "shell"]
Write = Callable[..., str]


def test_the_dry_run_is_what_is_sent(shell: Shell, recipe: Write, bed: Cluster) -> None:
    ask = ("submit", recipe(), "--on", "slurm", "--name", "same", "--set", "slurm.time=90m")
    text = shell(*ask, "--dry-run").out
    assert not shell.runs.exists(), "a dry run writes nothing"
    shell(*ask)
    job = number(shell, "same")
    assert text == (shell.runs / f"same/slurm/{job}_submission.sh").read_text()
    assert text == (shell.runs / "same/attempts/0/rendered.sh").read_text()
    assert text == bed.call("scontrol", "write", "batch_script", job, "-")
    assert {line for line in text.splitlines() if line.startswith("#SBATCH")} >= {
        "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --open-mode=append", "#SBATCH --requeue",
        "#SBATCH --signal=USR2@5", "#SBATCH --time=01:30:00",
    }  # fmt: skip
    assert "--kill-on-bad-exit=1" in text and "hetjob" not in text and "wckey" not in text
    assert shown(bed, job)["TimeLimit"] == "01:30:00"


def test_each_stage_of_a_dry_run_is_what_is_sent(shell: Shell, pipeline: Write) -> None:
    ask = ("submit", pipeline(), "--on", "slurm", "--name", "all")
    text = shell(*ask, "--dry-run").out
    shell(*ask)
    sent = [(shell.runs / f"all/slurm/{number(shell, 'all', n)}_submission.sh").read_text() for n in range(4)]
    names = ("learn", "merge", "score", "score-merge")
    parts = [f"## {n + 1} of 4: {name}{'' if n == 0 else f', sent with --dependency=afterok:JOB_OF_{names[n - 1]}'}\n"
             for n, name in enumerate(names)]  # fmt: skip
    assert text == "\n".join(head + script for head, script in zip(parts, sent, strict=True))


def test_without_slurms_commands_it_renders_and_does_not_submit(shell: Shell, recipe: Write, own_place: Path) -> None:
    ask = ("submit", recipe(), "--on", "slurm", "--name", "laptop")
    here = shell(*ask, "--dry-run").out
    assert shell(*ask, "--dry-run", PATH=str(own_place)).out == here
    refused = shell(*ask, check=2, PATH=str(own_place))
    assert "sbatch is not on PATH" in refused.err and "login node" in refused.err
    assert not (shell.runs / "laptop").exists()


@pytest.mark.parametrize(
    ("option", "words", "advice"),
    [
        ("slurm.partition=nowhere", "invalid partition specified: nowhere; ", "sinfo -s"),
        ("slurm.mem=900G", "Memory specification can not be satisfied; ", "slurm.mem"),
        ("slurm.reservation=never", "Batch job submission failed: Requested reservation is invalid\n", "doctor"),
        ("slurm.extra.colour=red", "unrecognized option '--colour=red'", "doctor"),
    ],
)
def test_what_sbatch_refuses_is_said_once_in_its_words(
    shell: Shell, recipe: Write, option: str, words: str, advice: str
) -> None:
    told = shell("submit", recipe(), "--on", "slurm", "--name", "no", "--set", option, check=1).err
    said = "".join(line for line in told.splitlines(keepends=True) if not line.startswith("Note: "))
    assert said.startswith("Error: sbatch refused: ") and said.count(words) == 1 and advice in said
    assert len(said.splitlines()) == 2, "the error and what to do"
    assert not (shell.runs / "no").exists(), "its name stays free"


def test_what_only_waiting_shows_is_said_by_the_status(shell: Shell, recipe: Write) -> None:
    ask = ("submit", recipe(), "--on", "slurm", "--name")
    shell(*ask, "many", "--nodes", "4")
    shell(*ask, "long", "--set", "slurm.partition=short", "--set", "slurm.time=3h")
    reasons = {
        "many": "it asks for more nodes than its partition allows (PartitionNodeLimit)",
        "long": "its time limit is longer than its partition allows (PartitionTimeLimit)",
    }
    for run, reason in reasons.items():
        shell.until(lambda run=run, reason=reason: shell.status(run)["reason"] == reason, reason)
        assert shell.status(run)["state"] == "PENDING"


def test_a_site_with_lines_of_its_own_runs_in_awkward_paths(
    shell: Shell, recipe: Write, bed: Cluster, own_place: Path
) -> None:
    """Setup, modules, environment, resources and quotes reach the nodes as they were meant."""
    runs = own_place / 'it\'s my "runs" & $more'
    place = {
        "backend": "slurm",
        "runs": str(runs),
        "environment": {"SITE": "it's \"here\" $HOME"},
        "slurm": {
            "cpus": 2, "mem": "1G", "time": "2-00:00:00", "partition": "main", "account": "test", "qos": "normal",
            "comment": "it's a \"try\"", "extra": {"nice": 7, "overcommit": True},
            "setup": ["export WHOSE='ours & mine'"],
        },
    }  # fmt: skip
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"site": place}}))
    shell("submit", recipe(), "--on", "site", "--name", "odd")
    shell.runs = runs
    done = shell.wait("odd")
    assert done["state"] == "SUCCEEDED", done
    for node in (0, 1):
        seen = json.loads((runs / f"odd/attempts/0/started-{node}.json").read_text())
        assert seen["SITE"] == 'it\'s "here" $HOME' and seen["WHOSE"] == "ours & mine"
        assert seen["SLURM_CPUS_PER_TASK"] == "2" and seen["SLURM_MEM_PER_NODE"] == "1024"
        assert seen["LLAVAJOB_RUN"] == str(runs / "odd")
    job = shown(bed, number(shell, "odd"))
    assert (job["TimeLimit"], job["Account"], job["QOS"], job["Partition"]) == ("2-00:00:00", "test", "normal", "main")
    assert job["Comment"].startswith("it's")
    assert "step 5" in rank_log(shell, "odd", 0, 1)


def test_more_shards_than_an_array_takes_are_told_before_anything_is_sent(
    shell: Shell, pipeline: Write, bed: Cluster
) -> None:
    """1001 is Slurm's own MaxArraySize: indices 0 to 1000."""
    ask = ("submit", pipeline(), "--on", "slurm", "--name", "wide", "--set", "slurm.extra.hold=true", "--set")
    said = shell(*ask, "stages.score.eval.shards=1002", check=2).err
    assert "score has 1002 shards, and this cluster's arrays take 1001 (MaxArraySize)" in said
    assert "--set stages.score.eval.shards=1001 or fewer" in said and not (shell.runs / "wide").exists()
    shell(*ask, "stages.score.eval.shards=1001")
    shell("cancel", "wide")
