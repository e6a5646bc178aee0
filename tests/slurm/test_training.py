"""Training on a real Slurm: how runs start, end, are hit, and go on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.shell import STANDIN, Shell, recipe, shell
from tests.slurm.bed import Bed, Cluster
from tests.slurm.jobs import (
    accounted,
    batch_script,
    end_soon,
    enough,
    events,
    number,
    queued,
    rank_log,
    shown,
    start_now,
    steps_done,
    wait_requeued,
)
from tests.world import build_world, losses, train_recipe, write_recipe

__all__ = ["recipe", "shell"]
Write = Callable[..., str]
REPOSITORY = Path(__file__).parents[2]
LONG = "100000"
STEPS = 240
"""Of a training with the real runtime."""


def submit(shell: Shell, recipe: str, run: str, *options: str, **environment: str) -> str:
    """Submit a run and return its job's id."""
    shell("submit", recipe, "--on", "slurm", "--name", run, *options, **environment)
    return number(shell, run)


def running(shell: Shell, recipe: str, run: str, *options: str, **environment: str) -> str:
    """Submit a run without end and wait until it has done some steps; return its job's id."""
    job = submit(shell, recipe, run, *options, **{"STANDIN_STEPS": LONG, **environment})
    shell.wait_step(run, 3)
    return job


def start_environment(shell: Shell, run: str, node: int, attempt: int = 0) -> dict[str, str]:
    """The environment that a node's agent was started with."""
    path = shell.runs / run / f"attempts/{attempt}/started-{node}.json"
    return dict(json.loads(path.read_text()))


def held(shell: Shell) -> str:
    """A profile whose jobs wait until they are released."""
    values = {"profiles": {"held": {"backend": "slurm", "slurm": {"extra": {"hold": True}}}}}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump(values))
    return "held"


def assert_cancelled(shell: Shell, bed: Cluster, run: str, job: str) -> dict[str, Any]:
    """Nothing is left, here or in the queue, and nothing comes back."""
    assert shell.left(run) == [] and queued(bed) == []
    seen: dict[str, Any] = shell.status(run)
    assert seen["state"] == "CANCELLED", seen
    assert shown(bed, job)["JobState"] == "CANCELLED"
    return seen


# From submit to the end


def test_a_run_goes_from_pending_to_succeeded_on_two_nodes(shell: Shell, recipe: Write, bed: Cluster) -> None:
    sent = shell("submit", recipe(), "--on", held(shell), "--name", "first", "--json", STANDIN_STEP_S="0.3").json
    job = number(shell, "first")
    assert (sent["backend"], sent["job_ids"], sent["state"]) == ("slurm", [job], "PENDING")
    assert shell.status("first")["reason"] == "held by its user; scontrol release lets it go (JobHeldUser)"
    bed.call("scontrol", "release", job)
    shell.wait("first", "RUNNING")
    done = shell.wait("first")
    assert (done["state"], done["step"], done["total_steps"], done["attempts"]) == ("SUCCEEDED", 5, 5, 1)
    assert shell.left("first") == []
    shell.until(lambda: accounted(bed, job, "State") == [["COMPLETED"]], "the end in the accounting")
    assert accounted(bed, job, "ExitCode", "NNodes") == [["0:0", "2"]]


def test_each_node_gets_one_agent_that_knows_where_the_others_meet(shell: Shell, recipe: Write, bed: Cluster) -> None:
    submit(shell, recipe(), "gang")
    shell.wait("gang")
    here, there = (start_environment(shell, "gang", node) for node in (0, 1))
    assert (here["SLURMD_NODENAME"], there["SLURMD_NODENAME"]) == ("node1", "node2")
    for node, seen in enumerate((here, there)):
        assert (seen["PET_NODE_RANK"], seen["PET_NNODES"], seen["PET_NPROC_PER_NODE"]) == (str(node), "2", "1")
        assert seen["SLURM_STEP_TASKS_PER_NODE"] == "1(x2)" and "SLURM_HET_SIZE" not in seen
    for name in ("PET_MASTER_ADDR", "PET_MASTER_PORT"):
        assert here[name] == there[name] != ""


def test_two_runs_on_the_same_nodes_do_not_meet(shell: Shell, recipe: Write) -> None:
    name = recipe()
    for run in ("one", "two"):
        submit(shell, name, run, "--set", "slurm.mem=1G", STANDIN_STEPS=LONG)
    for run in ("one", "two"):
        shell.wait_step(run, 3)
        assert shell.status(run)["state"] == "RUNNING"
    for run in ("one", "two"):
        enough(shell.runs / run)
        assert shell.wait(run)["state"] == "SUCCEEDED"
    one, two = (start_environment(shell, run, 0) for run in ("one", "two"))
    assert one["SLURM_JOB_NODELIST"] == two["SLURM_JOB_NODELIST"] == "node[1-2]"
    assert one["PET_MASTER_PORT"] != two["PET_MASTER_PORT"]


def test_who_waits_for_nodes_hears_when_they_come_free(shell: Shell, recipe: Write, bed: Cluster) -> None:
    whole = ("--set", "slurm.exclusive=true", "--set", "slurm.time=10m")
    ahead = running(shell, recipe(), "ahead", *whole)
    submit(shell, recipe(), "behind", *whole)
    pattern = re.compile(r"waits for free nodes \(Resources\); expected to start in (9 min \d\d s|10 min 0\d s)")
    seen = shell.until(lambda: (s := shell.status("behind")) and pattern.fullmatch(s["reason"]) and s, "the estimate")
    assert seen["state"] == "PENDING"
    assert pattern.search(shell("status", "behind").out) and "Resources" in shell("list").out
    bed.call("scancel", ahead)
    assert shell.wait("behind")["state"] == "SUCCEEDED"
    assert shell.status("ahead")["reason"].startswith("cancelled with scancel by root")


# Cancel


def test_cancel_saves_and_leaves_nothing_on_either_node(shell: Shell, recipe: Write, bed: Cluster) -> None:
    job = running(shell, recipe(), "long")
    assert len(shell.left("long")) >= 4, "two agents and their grandchildren in sessions of their own"
    assert "no process is left" in shell("cancel", "long").err
    seen = assert_cancelled(shell, bed, "long", job)
    assert f"state saved at step {seen['step']}" in seen["reason"]
    assert steps_done(shell.runs / "long") == list(range(1, seen["step"] + 1))
    assert shown(bed, job)["Restarts"] == "0"
    again = shell("cancel", "long", check=2)
    assert "has ended already (CANCELLED)" in again.err and "llavajob resume long" in again.err


def test_cancel_ends_what_ignores_signals(shell: Shell, recipe: Write, bed: Cluster) -> None:
    job = running(shell, recipe(retries={"grace_s": 1}), "deaf", STANDIN_DEAF="1")
    shell("cancel", "deaf")
    assert_cancelled(shell, bed, "deaf", job)


def test_cancel_of_what_waits(shell: Shell, recipe: Write, bed: Cluster) -> None:
    shell("submit", recipe(), "--on", held(shell), "--name", "waiting")
    shell("cancel", "waiting")
    seen = assert_cancelled(shell, bed, "waiting", number(shell, "waiting"))
    assert seen["reason"].startswith("cancelled by root@") and seen["attempts"] == 0


def test_cancel_of_what_was_requeued(shell: Shell, recipe: Write, bed: Cluster) -> None:
    job = running(shell, recipe(), "again")
    bed.call("scontrol", "requeue", job)
    saved = wait_requeued(shell, "again")["step"]
    shell("cancel", "again")
    seen = assert_cancelled(shell, bed, "again", job)
    assert f"state saved at step {saved}" in seen["reason"]


def test_scancel_from_outside_counts_as_cancelled(shell: Shell, recipe: Write, bed: Cluster) -> None:
    job = running(shell, recipe(), "hit")
    waiting = shell("submit", recipe(), "--on", held(shell), "--name", "never", "--json").json["job_ids"][0]
    bed.call("scancel", job, waiting)
    for run in ("hit", "never"):
        assert shell.wait(run)["state"] == "CANCELLED"
    assert_cancelled(shell, bed, "hit", job)
    assert_cancelled(shell, bed, "never", waiting)
    saved = max(int(p.name[5:]) for p in (shell.runs / "hit/checkpoints").iterdir())
    assert re.fullmatch(rf"cancelled with scancel by root on \S+; state saved at step {saved}", reason(shell, "hit"))
    assert reason(shell, "never") == "cancelled with scancel by root"


def reason(shell: Shell, run: str) -> str:
    """A run's reason."""
    return str(shell.status(run)["reason"])


# Requeue


def by_hand(shell: Shell, bed: Cluster, run: str, job: str) -> None:
    """As an administrator does it: SIGTERM."""
    bed.call("scontrol", "requeue", job)


def by_time_limit(shell: Shell, bed: Cluster, run: str, job: str) -> None:
    """The limit of a minute is signalled half a minute before it, or somewhat earlier: SIGUSR2."""


def by_preemption(shell: Shell, bed: Cluster, run: str, job: str) -> None:
    """A job of a higher partition needs both nodes."""
    higher = ("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null")
    other = bed.call("sbatch", "--parsable", *higher, "--wrap=sleep 1").strip()
    shell.until(lambda: shown(bed, other)["JobState"] == "COMPLETED", "the end of the higher job")


@pytest.mark.parametrize("how", [by_hand, by_time_limit, by_preemption])
def test_a_requeued_run_goes_on_from_the_step_it_was_at(
    shell: Shell, recipe: Write, bed: Cluster, how: Callable[[Shell, Cluster, str, str], None]
) -> None:
    limit = ("--set", "slurm.time=1m") if how is by_time_limit else ()
    job = running(shell, recipe(retries={"grace_s": 15}), "moved", *limit)
    following = shell.start("logs", "moved", "--rank", "0", "--follow")
    how(shell, bed, "moved", job)
    waiting = wait_requeued(shell, "moved")
    if how is by_preemption:
        assert waiting["reason"].endswith("; gave way to a job of higher priority"), waiting["reason"]
    assert shell.left("moved") == []
    saved = waiting["step"]
    assert "REQUEUED" in shell("list").out and waiting["attempts"] == 1
    assert not shell("resume", "moved", check=2).out, "what goes on by itself is not resumed"
    start_now(bed, job)
    shell.wait_step("moved", saved + 2)
    enough(shell.runs / "moved")
    done = shell.wait("moved")
    assert (done["state"], done["attempt"], done["attempts"]) == ("SUCCEEDED", 1, 2)
    assert steps_done(shell.runs / "moved") == list(range(1, done["step"] + 1)), "no step lost, none done twice"
    told = "SIGUSR2" if how is by_time_limit else "SIGTERM|SIGUSR2"
    assert re.search(f"saved because of ({told})$", rank_log(shell, "moved", 0), re.MULTILINE)
    assert f"starts at step {saved} " in rank_log(shell, "moved", 1)
    assert shown(bed, job)["Restarts"] == "1"
    assert [e["event"] for e in events(shell.runs / "moved")] == ["run.attempt", "run.requeued", "run.attempt"]
    out, words = following.communicate(timeout=30)
    assert following.returncode == 0 and "moved succeeded" in words
    first, second = "── attempt 0 ──\n", "── attempt 1 ──\n"
    assert_logs(first + out, saved, done["step"])  # who follows needs no header before there is another attempt
    whole = shell("logs", "moved", "--rank", "0").out
    assert whole.startswith(first) and whole.count(second) == 1
    assert_logs(whole, saved, done["step"])


def assert_logs(text: str, saved: int, last: int) -> None:
    """Both attempts are there in order, each below its header, with every step."""
    assert [line for line in text.splitlines() if "attempt" in line] == ["── attempt 0 ──", "── attempt 1 ──"]
    first, second = text.split("── attempt 1 ──")
    assert f"step {saved}\n" in first and f"step {saved + 1}\n" in second
    assert {int(n) for n in re.findall(r"INFO step (\d+)$", text, re.MULTILINE)} == set(range(1, last + 1))


def test_what_was_submitted_is_what_runs_after_a_requeue(
    shell: Shell, recipe: Write, bed: Cluster, own_place: Path
) -> None:
    """The checkout moves on while the run waits; the run does not."""
    checkout = own_place / "checkout"
    shutil.copytree(REPOSITORY / "launcher", checkout / "launcher")
    shutil.copytree(STANDIN / "llava", checkout / "llava")
    values = {"profiles": {"kept": {"backend": "slurm", "code": "snapshot"}}}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump(values))
    name = recipe(environment={})
    shell("submit", name, "--on", "kept", "--name", "kept", PYTHONPATH=str(checkout), STANDIN_STEPS=LONG)
    shell.wait_step("kept", 3)
    job = number(shell, "kept")
    bed.call("scontrol", "requeue", job)
    wait_requeued(shell, "kept")
    for path in ("llava/agent.py", "launcher/backends/slurm/batch.py", "launcher/backends/slurm/task.py"):
        (checkout / path).write_text("raise SystemExit('the checkout has moved on')\n")
    enough(shell.runs / "kept")
    start_now(bed, job)
    done = shell.wait("kept")
    assert (done["state"], done["attempts"]) == ("SUCCEEDED", 2), done["reason"]
    record = json.loads((shell.runs / "kept/run.json").read_text())["code"]
    assert record["from"] == str(checkout) and "git_commit" in record
    assert (shell.runs / "kept" / record["folder"] / record["diff"]).exists()


# Resume


def test_resume_after_cancel_on_one_node(shell: Shell, recipe: Write, bed: Cluster) -> None:
    first = running(shell, recipe(), "cut")
    shell("cancel", "cut")
    saved = shell.status("cut")["step"]
    shell("resume", "cut", "--nodes", "1", STANDIN_STEPS=str(saved + 3))
    done = shell.wait("cut")
    assert (done["state"], done["attempt"], done["attempts"], done["step"]) == ("SUCCEEDED", 1, 2, saved + 3)
    assert f"starts at step {saved} " in rank_log(shell, "cut", 1)
    assert not (shell.runs / "cut/attempts/1/rank0001.log").exists()
    second = number(shell, "cut")
    assert second != first and shown(bed, second)["NumNodes"] == "1"
    sent = (shell.runs / f"cut/slurm/{second}_submission.sh").read_text()
    assert sent == (shell.runs / "cut/attempts/1/rendered.sh").read_text()


def test_resume_from_another_folder(shell: Shell, recipe: Write, own_place: Path) -> None:
    """The paths in a recipe are meant from where it was submitted, those given now from here."""
    running(shell, recipe(), "cut")
    shell("cancel", "cut")
    first, shell.folder = shell.folder, own_place
    (own_place / "other.json").write_text("[]")
    shell("resume", "cut", "--set", "data.records=other.json", STANDIN_STEPS="1")
    assert shell.wait("cut")["state"] == "SUCCEEDED"
    config = yaml.safe_load((shell.runs / "cut/config.yaml").read_text())
    assert config["data"] | {"images": str(first), "records": str(own_place / "other.json")} == config["data"]


def test_resume_after_failure(shell: Shell, recipe: Write) -> None:
    submit(shell, recipe(), "failed", STANDIN_FAIL="exit:3 progress")
    failed = shell.wait("failed")
    assert failed["state"] == "FAILED" and failed["step"] == 2
    shell("resume", "failed", "--nodes", "1", "--follow")
    done = shell.status("failed")
    assert (done["state"], done["attempts"], done["step"]) == ("SUCCEEDED", 2, 5)


def test_resume_after_a_time_out_that_left_no_time_to_save(shell: Shell, recipe: Write, bed: Cluster) -> None:
    """A runtime that does not listen is ended by the limit; what it saved before is gone on from."""
    job = submit(shell, recipe(retries={"grace_s": 1}), "late", "--set", "slurm.time=1h", STANDIN_FAIL="progress",
                 STANDIN_DEAF="1", STANDIN_STEPS=LONG)  # fmt: skip
    shell.wait_step("late", 3)
    end_soon(bed, job, 1)
    late = shell.wait("late")
    assert late["state"] == "FAILED" and "time limit was reached" in late["reason"], late
    assert shell.left("late") == [] and queued(bed) == []
    assert shown(bed, job)["JobState"] == "TIMEOUT"
    shell("resume", "late", "--nodes", "1", STANDIN_STEPS="4")
    done = shell.wait("late")
    assert (done["state"], done["attempts"], done["step"]) == ("SUCCEEDED", 2, 4)
    assert "starts at step 2 " in rank_log(shell, "late", 1)


# What breaks


def test_a_killed_rank_is_named_and_the_run_goes_on_where_it_is(shell: Shell, recipe: Write, bed: Cluster) -> None:
    """A new step was saved, so the nodes are good: the next attempt starts in the same job."""
    short = recipe(retries={"grace_s": 2})
    job = submit(shell, short, "hit", STANDIN_FAIL="kill progress", STANDIN_FAIL_ATTEMPTS="1")
    done = shell.wait("hit")
    assert (done["state"], done["attempts"], done["step"]) == ("SUCCEEDED", 2, 5)
    assert shown(bed, job)["Restarts"] == "0"
    restart = next(e for e in events(shell.runs / "hit") if e["event"] == "run.restarted")
    assert restart["reason"].startswith("rank 0 on node 0 (here): exit code 137 (SIGKILL): killed, often because")


def test_attempts_without_progress_stop_at_the_limit(shell: Shell, recipe: Write, bed: Cluster) -> None:
    """The rank on the other node dies each time: named, waited for, tried once more, given up."""
    short = recipe(retries={"grace_s": 2})
    job = submit(shell, short, "stuck", STANDIN_FAIL="kill", STANDIN_FAIL_NODE="1", STANDIN_STEPS=LONG)
    waiting = wait_requeued(shell, "stuck")
    assert "rank 1 on node 1 (here): exit code 137 (SIGKILL): killed, often because memory ran out" in waiting["reason"]
    assert shell.left("stuck") == []
    start_now(bed, job)
    done = shell.wait("stuck")
    assert (done["state"], done["attempts"]) == ("FAILED", 2)
    assert "rank 1 on node 1" in done["reason"] and "2 attempts in a row without a new step" in done["reason"]
    assert shell.left("stuck") == [] and queued(bed) == []


def test_the_traceback_of_the_first_failure_is_shown(shell: Shell, recipe: Write) -> None:
    name = recipe(retries={"grace_s": 5, "without_progress": 1})
    submit(shell, name, "broken", STANDIN_FAIL="error", STANDIN_FAIL_NODE="1", STANDIN_STEPS=LONG)
    done = shell.wait("broken")
    assert done["state"] == "FAILED" and done["failure"]["rank"] == done["failure"]["node"] == 1
    said = shell("status", "broken").out
    assert "first failure: rank 1 on node 1 (here): RuntimeError: boom" in said and "File x" in said
    assert seconds_between_failure_and_end(shell, "broken") < 15


def seconds_between_failure_and_end(shell: Shell, run: str) -> float:
    """How long the other node outlived the first failure."""
    failed = json.loads((shell.runs / run / "attempts/0/errors/rank0001.json").read_text())["time"]
    return float(shell.status(run)["ended"]) - failed


def test_an_error_that_would_come_again_is_not_tried_again(shell: Shell, recipe: Write, bed: Cluster) -> None:
    job = submit(shell, recipe(), "final", STANDIN_FAIL="exit:3", STANDIN_STEPS=LONG)
    done = shell.wait("final")
    assert (done["state"], done["attempts"]) == ("FAILED", 1)
    assert done["reason"] == "rank 0 on node 0 (here): no pictures"
    assert "Draw some." in shell("status", "final").out
    assert queued(bed) == [] and shell.left("final") == []
    assert shown(bed, job)["JobState"] == "FAILED"


def test_a_killed_agent_ends_the_attempt_on_both_nodes(shell: Shell, recipe: Write, bed: Cluster) -> None:
    """The other node saves and leaves, which is progress: the next attempt starts in the same job."""
    job = running(shell, recipe(retries={"grace_s": 2}), "headless")
    psutil.Process(agent(shell, "headless", 1)).kill()
    shell.until(lambda: shell.status("headless")["attempts"] == 2, "the second attempt")
    enough(shell.runs / "headless")
    done = shell.wait("headless")
    assert (done["state"], done["attempts"]) == ("SUCCEEDED", 2)
    restart = next(e for e in events(shell.runs / "headless") if e["event"] == "run.restarted")
    assert restart["reason"].startswith("node 1: exit code 137 (SIGKILL): killed")
    assert steps_done(shell.runs / "headless") == list(range(1, done["step"] + 1)) and shell.left("headless") == []
    assert shown(bed, job)["Restarts"] == "0"


def agent(shell: Shell, run: str, node: int) -> int:
    """The process of a node's agent."""
    found = [pid for pid in shell.agents(run) if psutil.Process(pid).environ()["LLAVAJOB_NODE"] == str(node)]
    return found[0]


def test_a_killed_batch_script_is_said_and_resumed(shell: Shell, recipe: Write, own_bed: Bed) -> None:
    job = running(shell, recipe(), "cut-off")
    batch_script(own_bed, job).kill()
    done = shell.wait("cut-off")
    assert done["state"] == "FAILED" and "the batch script ended without a word" in done["reason"], done
    assert "137 (SIGKILL)" in done["reason"]
    shell.until(lambda: not shell.left("cut-off"), "nothing left")
    assert queued(own_bed) == []
    shell("resume", "cut-off", STANDIN_STEPS=str(done["step"] + 2))
    assert shell.wait("cut-off")["state"] == "SUCCEEDED"


def test_a_node_that_dies_costs_the_run_no_more_than_its_last_save(shell: Shell, recipe: Write, own_bed: Bed) -> None:
    job = running(shell, recipe(), "node", STANDIN_FAIL="progress")
    own_bed.kill_node("node2")
    own_bed.start_node("node2")
    waiting = wait_requeued(shell, "node", most_s=150)
    assert "ended without a word (a node was lost" in waiting["reason"], waiting["reason"]
    assert shell.left("node") == []
    enough(shell.runs / "node")
    start_now(own_bed, job)
    done = shell.wait("node")
    assert (done["state"], done["attempts"]) == ("SUCCEEDED", 2), done["reason"]
    assert "starts at step 2 " in rank_log(shell, "node", 1)


# A controller that is silent


def test_a_silent_controller_is_said_and_changes_nothing(shell: Shell, recipe: Write, own_bed: Bed) -> None:
    """Status keeps what was last known; submit and cancel wait, and are then done once."""
    less = ("--set", "slurm.mem=1G")
    name = recipe()
    for run in ("before", "ending"):
        running(shell, name, run, *less)
    own_bed.stop_controller()
    asked = {
        "follow": shell.start("logs", "before", "--follow"),
        "status": shell.start("status", "before"),
        "list": shell.start("list"),
        "submit": shell.start("submit", name, "--on", "slurm", "--name", "during", *less),
        "cancel": shell.start("cancel", "ending"),
    }
    for command, words in {"submit": "looking whether it took the job", "cancel": "trying again ..."}.items():
        await_words(asked[command], words)
    said = {command: asked[command].communicate(timeout=60)[0] for command in ("status", "list")}
    assert re.match(r"before +RUNNING +Slurm does not answer", said["status"]), said["status"]
    assert re.search(r"^before .* RUNNING .* Slurm does not answer", said["list"], re.MULTILINE), said["list"]
    own_bed.start_controller()
    out, _ = asked["submit"].communicate(timeout=60)
    assert (asked["submit"].returncode, out) == (0, "during\n")
    sent = own_bed.call("squeue", "--noheader", "--states=all", "--name=during", "--format=%i").split()
    assert sent == [number(shell, "during")], "sent once"
    asked["cancel"].communicate(timeout=60)
    assert asked["cancel"].returncode == 0 and shell.status("ending")["state"] == "CANCELLED"
    assert shell.wait("during", "RUNNING", "SUCCEEDED")
    assert (shell.status("before")["state"], shell.status("before")["reason"]) == ("RUNNING", "")
    enough(shell.runs / "before")
    assert shell.wait("before")["state"] == "SUCCEEDED"
    asked["follow"].communicate(timeout=30)
    assert asked["follow"].returncode == 0


def await_words(process: subprocess.Popen[str], words: str) -> None:
    """Wait until a process has said something to people."""
    assert process.stderr is not None
    assert any(words in line for line in iter(process.stderr.readline, "")), words


# Without accounting


def test_a_cluster_without_accounting_tells_every_end(
    shell: Shell, recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bed(accounting=False) as bed:
        monkeypatch.setenv("SLURM_CONF", bed.environment["SLURM_CONF"])
        name = recipe(retries={"grace_s": 5, "without_progress": 1})
        less = ("--set", "slurm.mem=1G", "--nodes", "1")
        submit(shell, name, "good", *less)
        submit(shell, name, "bad", *less, STANDIN_FAIL="exit:3")
        running(shell, name, "cut", *less)
        outside = running(shell, name, "outside", *less)
        killed = running(shell, name, "killed", *less)
        shell("cancel", "cut")
        bed.call("scancel", outside)
        batch_script(bed, killed).kill()
        ends = {run: shell.wait(run) for run in ("good", "bad", "cut", "outside", "killed")}
        monkeypatch.undo()
    states = {run: end["state"] for run, end in ends.items()}
    assert states == {
        "good": "SUCCEEDED", "bad": "FAILED", "cut": "CANCELLED", "outside": "CANCELLED", "killed": "FAILED",
    }  # fmt: skip
    assert ends["bad"]["reason"] == "rank 0 on node 0 (here): no pictures"
    assert ends["outside"]["reason"].startswith("cancelled with scancel")


# With the real runtime


def test_losses_after_every_kind_of_requeue_are_those_of_a_whole_run(
    shell: Shell, bed: Cluster, own_place: Path
) -> None:
    """By hand, by a killed rank, by preemption: bit for bit what training in one go gives."""
    values = train_recipe(build_world(own_place / "world"), STEPS, save_every=STEPS)
    values["resources"]["threads_per_process"] = 1  # sums depend on how many threads share them
    recipe = str(write_recipe(shell.folder / "tiny.yaml", values))
    shell("submit", recipe, "--on", "local", "--name", "whole")
    job = submit(shell, recipe, "hit", "--set", "slurm.time=1h")
    shell.wait_step("hit", 3)
    by_hand(shell, bed, "hit", job)
    first = wait_requeued(shell, "hit")["step"]
    start_now(bed, job)
    shell.wait_step("hit", first + 3)
    psutil.Process(rank(shell, "hit", 1)).kill()
    shell.until(lambda: shell.status("hit")["attempts"] == 3, "the third attempt, in the same job")
    shell.wait_step("hit", shell.status("hit")["step"] + 2)
    by_preemption(shell, bed, "hit", job)
    second = wait_requeued(shell, "hit")["step"]
    start_now(bed, job)
    hit, whole = shell.wait("hit", most_s=120), shell.wait("whole", most_s=120)
    assert (hit["state"], hit["attempts"], whole["state"]) == ("SUCCEEDED", 4, "SUCCEEDED"), hit["reason"]
    assert 3 <= first < second < STEPS
    assert losses(shell.runs / "hit") == losses(shell.runs / "whole")
    assert sorted(losses(shell.runs / "hit")) == list(range(1, STEPS + 1))
    again = len(steps_done(shell.runs / "hit")) - STEPS
    assert again <= 1, "no requeue lost a step; the rank that was killed may have cost the one that it was at"


def rank(shell: Shell, run: str, number: int) -> int:
    """The process of one rank."""
    for process in psutil.process_iter():
        try:
            environment, command = process.environ(), process.cmdline()
        except psutil.Error:
            continue
        mine = environment.get("LLAVAJOB_RUN") == str(shell.runs / run) and environment.get("RANK") == str(number)
        if mine and "llava.train" in command:
            return process.pid
    raise AssertionError(f"rank {number} of {run} is not there")
