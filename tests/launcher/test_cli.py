"""The command line: what goes where, exit codes, and kind words for mistakes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
from collections.abc import Callable
from dataclasses import asdict

import pytest

from launcher.backends.base import StepState
from tests.shell import Shell

Write = Callable[..., str]
STATUS_KEYS = {
    "run", "recipe", "backend", "state", "reason", "attempt", "attempts", "step", "total_steps", "loss",
    "samples_per_s", "eta_s", "dir",
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit", "finetun"], "did you mean 'finetune'"),
        (["submit", "./none.yaml"], "no file ./none.yaml"),
        (["submit", "quickstart", "--on", "lokal"], "did you mean 'local'"),
        (["submit", "quickstart", "--set", "sede=1"], "did you mean 'seed'"),
        (["submit", "quickstart", "--set", "seed"], "is not KEY=VALUE"),
        (["submit", "quickstart", "--set", "seed=x"], "a whole number at least 0 is needed"),
        (["submit", "quickstart", "--name", "Über 'quoted' name; rm -rf /"], "--name ber-quoted-name-rm-rf"),
        (["submit", "quickstart", "--name", "../escape"], "cannot be a run's name"),
        (["submit", "quickstart", "--name", "a" * 60], "at most 50 characters"),
        (["submit", "quickstart", "--nodes", "0"], "resources.nodes is 0"),
        (["submit", "quickstart", "--nodes", "two"], "Invalid value for '--nodes'"),
        (["status"], "there are no runs yet"),
        (["status", "../x"], "there are no runs yet"),
        (["logs", "nothing"], "there are no runs yet"),
        (["cancel", "nothing"], "there are no runs yet"),
        (["resume", "nothing"], "there are no runs yet"),
        (["list", "--state", "runing"], "did you mean 'RUNNING'"),
        (["recipes", "quikstart"], "did you mean 'quickstart'"),
        (["nonsense"], "No such command"),
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(shell: Shell, arguments: list[str], said: str) -> None:
    result = shell(*arguments, check=2)
    assert said in result.err
    assert result.out == ""
    assert not shell.runs.exists()


def test_names_and_prefixes(shell: Shell, recipe: Write) -> None:
    for name in ("alpha-1", "alpha-2", "beta"):
        shell("submit", recipe(), "--name", name, "--follow")
    assert shell.status("b")["run"] == "beta"
    assert shell("status", "--json").json["run"] == "beta", "without a name, the latest"
    ambiguous = shell("status", "alpha", check=2).err
    assert "'alpha' fits 2 runs: alpha-1, alpha-2" in ambiguous
    unknown = shell("status", "gamma", check=2).err
    assert "no run named 'gamma'" in unknown and "Latest runs: beta, alpha-2, alpha-1" in unknown


def test_json_has_the_promised_keys_and_nothing_else_on_stdout(shell: Shell, recipe: Write) -> None:
    sent = shell("submit", recipe(), "--name", "keys", "--json", "--follow")
    assert set(sent.json) == {"run", "dir", "backend", "job_ids", "state"}
    assert set(shell.status("keys")) >= STATUS_KEYS
    listed = shell("list", "--json").json
    assert [row["run"] for row in listed] == ["keys"] and set(listed[0]) >= STATUS_KEYS
    assert shell("list", "--json", "--state", "failed").json == []


def test_people_words_go_to_stderr(shell: Shell, recipe: Write) -> None:
    result = shell("submit", recipe(), "--name", "plain")
    assert result.out == "plain\n"
    assert "llavajob logs plain --follow" in result.err
    assert "\x1b" not in result.out + result.err, "no colours where there is no terminal"
    shell.wait("plain")


def test_dry_run_prints_the_plan_beside_the_text(shell: Shell, recipe: Write) -> None:
    name = recipe(train={"global_batch": 12, "device_batch": 3, "epochs": 2}, records=25)
    (shell.folder / "records.json").write_text('[{"conversations": []}, {"conversations": []}]')
    words = shell("submit", name, "--dry-run", "--set", "seed=7").err
    assert "2 nodes x 1 process = 2 ranks" in words
    assert "batch 3 per device x 2 accumulation x 2 ranks = 12 global" in words
    assert "2 steps (2 records, 2 epochs)" in words
    assert "seed = 7  (--set seed)" in words and "train.epochs = 2.0  (train.yaml:" in words


def test_logs_of_ranks_are_merged_and_chosen(shell: Shell, recipe: Write) -> None:
    # Steps long enough that both ranks run at the same time on a busy machine, too.
    shell("submit", recipe(), "--name", "talk", "--follow", STANDIN_STEP_S="0.5")
    both = shell("logs", "talk").out
    assert "[ranks 0-1]" in both and "step 5" in both
    one = shell("logs", "talk", "--rank", "1").out
    assert "node 1 starts" in one and "node 0 starts" not in one
    assert len(shell("logs", "talk", "--rank", "0", "--tail", "2").out.splitlines()) == 2
    assert all("step 3" in line for line in shell("logs", "talk", "--grep", "step 3").out.splitlines())
    assert "(" in shell("logs", "talk", "--grep", "(", check=2).err
    assert shell("logs", "talk", "--since", "soon", check=2).err.startswith("Error:")
    assert "No log lines fit" in shell("logs", "talk", "--attempt", "7").err


def test_logs_follow_goes_on_across_attempts(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "twice", STANDIN_FAIL="kill-progress", STANDIN_FAIL_ATTEMPTS="1")
    out = shell("logs", "twice", "--follow").out
    before, header, after = out.partition("── attempt 1 ──")
    assert header and "starts at step 0" in before and "starts at step" in after


def test_commands_work_from_any_folder(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "roam", "--follow")
    shell.folder = shell.folder.parent
    assert shell.status("roam")["state"] == "SUCCEEDED"


def test_recipes_are_listed_and_explained(shell: Shell) -> None:
    names = [row["name"] for row in shell("recipes", "--json").json]
    assert {"finetune", "pretrain", "mmbench", "quickstart"} <= set(names)
    assert "quickstart" in shell("recipes").out
    explained = shell("recipes", "finetune").out
    assert "train.learning_rate = 2.0e-4" in explained or "train.learning_rate = 0.0002" in explained
    assert "Peak learning rate" in explained and "jobs/finetune.yaml:" in explained


def test_profiles_are_listed(shell: Shell) -> None:
    rows = shell("profiles", "--json").json
    assert rows[0]["name"] == "local" and rows[0]["default"] and rows[0]["runs"] == str(shell.runs)


def test_a_runs_root_that_cannot_be_written_is_said(shell: Shell, recipe: Write) -> None:
    said = shell("submit", recipe(), check=2, LLAVAJOB_RUNS="/proc/nothing").err
    assert "cannot make the run's folder" in said and "LLAVAJOB_RUNS" in said


def test_version(shell: Shell) -> None:
    assert shell("--version").out.startswith("llavajob ")


def test_a_full_disk_leaves_no_half_run(shell: Shell, recipe: Write) -> None:
    words = [*shell.command, "submit", recipe(), "--name", "full"]
    limited = ["bash", "-c", 'ulimit -f 0; exec "$@"', "bash", *words]
    done = subprocess.run(limited, capture_output=True, text=True, cwd=shell.folder, check=False)
    assert done.returncode == 1 and "cannot write the run's folder" in done.stderr and "LLAVAJOB_RUNS" in done.stderr
    assert "Traceback" not in done.stderr and not (shell.runs / "full").exists()


def test_a_terminal_gets_progress_bars(shell: Shell, recipe: Write) -> None:
    """Under a pseudo-terminal: one bar a step with its state and time, and the words of the end below."""
    ours, theirs = pty.openpty()
    command = [*shell.command, "submit", recipe(), "--name", "seen", "--follow"]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=shell.folder)
    os.close(theirs)
    shown = ""
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal is an error
        while data := os.read(ours, 65536):
            shown += data.decode(errors="replace")
    os.close(ours)
    assert child.wait(timeout=30) == 0
    assert "\x1b[" in shown and "5/5" in shown and "seen succeeded in" in shown
    assert "INFO step" not in shown, "bars instead of log lines"


def test_a_cluster_that_cannot_be_asked_hides_no_other_run(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "here", "--follow")
    record = json.loads((shell.runs / "here/run.json").read_text())
    step = asdict(StepState("train", "", "gang"))
    (shell.runs / "there/kubernetes").mkdir(parents=True)
    (shell.runs / "there/run.json").write_text(json.dumps({**record, "name": "there", "backend": "kubernetes"}))
    sent = {"context": "none", "namespace": "vlm", "complete": True}
    sent["parts"] = [{"step": step, "kind": "PyTorchJob", "name": "there", "members": []}]
    (shell.runs / "there/kubernetes/sent.json").write_text(json.dumps(sent))
    listed = {run["run"]: (run["state"], run["reason"]) for run in shell("list", "--json").json}
    assert listed["here"] == ("SUCCEEDED", "") and listed["there"][0] == "UNKNOWN"
    assert listed["there"][1].startswith("no Kubernetes cluster is known here")
    assert "no Kubernetes cluster is known here" in shell("status", "there", check=1).err
