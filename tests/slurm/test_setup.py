"""Set-up lines of a profile on real nodes: one that fails ends the run with its own words, the others reach it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.shell import Shell, pipeline, recipe, shell
from tests.slurm.bed import Cluster
from tests.slurm.jobs import number, queued

__all__ = ["pipeline", "recipe", "shell"]
Write = Callable[..., str]

SITE = """\
module() {
    false
    [ "$2" = gcc/12 ] && { export GCC=12; return 0; }
    echo "Lmod has detected the following error: These module(s) are unknown: \\"$2\\"" >&2
    return 1
}
[ -n "$NOT_SET_ANYWHERE" ] && export A=1
export SITE=here
"""


def profile(shell: Shell, **place: Any) -> None:
    values = {"profiles": {"site": {"backend": "slurm", "slurm": place}}}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ({"modules": ["cuda/99.9"]}, "set-up line 'module load cuda/99.9' failed (exit code 127): module: command not"),
        (
            {"setup": ["source SITE", "module load gcc/12", "module load cuda/99.9"]},
            "set-up line 'module load cuda/99.9' failed (exit code 1): "
            'Lmod has detected the following error: These module(s) are unknown: "cuda/99.9"',
        ),
        (
            {
                "setup": [
                    "module() { echo \"ModuleCmd_Load.c(213):ERROR:105: no modulefile '$2'\" >&2; }",
                    "module load x",
                ]
            },
            "a module could not be loaded: no modulefile 'x'",
        ),
        ({"setup": ["true", "echo bye >&2; exit 0"]}, "set-up line 'echo bye >&2; exit 0' ended the batch script"),
        ({"setup": ["if true; then"]}, "the set-up lines are not what bash can run (exit code 2): syntax error"),
    ],
)
def test_a_line_that_fails_ends_the_run_with_its_own_words(
    shell: Shell, recipe: Write, bed: Cluster, place: dict[str, Any], reason: str
) -> None:
    (shell.folder / "site.sh").write_text(SITE)
    name = str(shell.folder / "site.sh").replace("'", "'\"'\"'")
    lines = [line.replace("SITE", f"'{name}'") for line in place.get("setup", ())]
    profile(shell, **{**place, **({"setup": lines} if lines else {})})
    shell("submit", recipe(), "--on", "site", "--name", "odd")
    ended = shell.wait("odd")
    assert ended["state"] == "FAILED" and ended["reason"].startswith(reason), ended
    assert not list(shell.runs.glob("odd/attempts/0/started-*")), "nothing was started without them"
    assert queued(bed) == [], "it is not tried again"
    assert f"FAILED  {reason[:40]}" in shell("status", "odd").out


def test_what_the_lines_export_reaches_every_node(shell: Shell, recipe: Write, own_place: Path) -> None:
    (own_place / "site.sh").write_text(SITE)
    lines = [f"source {own_place}/site.sh", "module load gcc/12", "module load cuda/99.9 || export CUDA=none"]
    profile(shell, setup=lines)
    shell("submit", recipe(environment={"NOTE": "first\ntouch INJECTED\n'last\n", **_standin()}), "--on", "site")
    run = next(path for path in shell.runs.iterdir() if path.name.startswith("train-"))
    assert shell.wait(run.name)["state"] == "SUCCEEDED"
    for node in (0, 1):
        seen = json.loads((run / f"attempts/0/started-{node}.json").read_text())
        assert (seen["SITE"], seen["GCC"], seen["CUDA"]) == ("here", "12", "none")
        assert seen["NOTE"] == "first\ntouch INJECTED\n'last\n"
    assert not list(own_place.rglob("INJECTED"))


def test_every_shard_says_why_its_set_up_failed(shell: Shell, pipeline: Write) -> None:
    profile(shell, setup=["[[ ! $SLURM_ARRAY_TASK_ID ]] || { echo 'no licence left' >&2; false; }"])
    shell("submit", pipeline(), "--on", "site", "--name", "all")
    ended = shell.wait("all", most_s=120)
    assert ended["state"] == "FAILED" and "no licence left" in ended["reason"], ended
    assert {step["name"]: step["state"] for step in ended["stages"]}["learn"] == "SUCCEEDED"


def test_doctor_runs_the_lines_on_a_node(shell: Shell, own_place: Path) -> None:
    (own_place / "site.sh").write_text(SITE)
    lines = [f"source {own_place}/site.sh", "module load gcc/12"]
    profile(shell, setup=lines, time="1h")
    found = {one["what"]: one for one in shell("doctor", "--on", "site", "--json", check=None).json}
    assert found["set-up"]["good"] is True
    profile(shell, setup=[*lines, "module load cuda/99.9"], time="1h")
    found = {one["what"]: one for one in shell("doctor", "--on", "site", "--json", check=1).json}
    assert found["set-up"]["seen"].startswith("set-up line 'module load cuda/99.9' failed (exit code 1): Lmod has")
    profile(shell, setup=["if true"], time="1h")
    found = {one["what"]: one for one in shell("doctor", "--on", "site", "--json", check=1).json}
    assert found["set-up"]["seen"].startswith("the set-up lines are not what bash can run (exit code 2): syntax error")


def test_a_comment_reaches_slurm_as_it_was_written(shell: Shell, recipe: Write, bed: Cluster) -> None:
    comment = 'it\'s \\ \\\\ "two" # %j $(touch INJECTED) ü'
    profile(shell, comment=comment, extra={"hold": True, "overcommit": False, "nice": None})
    shell("submit", recipe(), "--on", "site", "--name", "said")
    said = bed.call("squeue", "--noheader", f"--jobs={number(shell, 'said')}", "--format=%k")
    assert said.startswith(comment)
    shell("cancel", "said")


def _standin() -> dict[str, str]:
    from tests.shell import STANDIN

    return {"PYTHONPATH": str(STANDIN)}
