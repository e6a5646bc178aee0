"""The local backend with real processes: what ends, what is kept, what is said."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import psutil

from tests.shell import Shell

Write = Callable[..., str]


def test_a_run_goes_from_submit_to_succeeded(shell: Shell, recipe: Write) -> None:
    sent = shell("submit", recipe(), "--name", "first", "--json").json
    assert sent["run"] == "first" and sent["backend"] == "local" and len(sent["job_ids"]) == 1
    done = shell.wait("first")
    assert (done["state"], done["step"], done["total_steps"], done["attempts"]) == ("SUCCEEDED", 5, 5, 1)
    assert shell.left("first") == []
    ranks = sorted(path.name for path in (shell.runs / "first/attempts/0").glob("rank*.log"))
    assert ranks == ["rank0000.log", "rank0001.log"]


def test_it_survives_the_shell_that_submitted(shell: Shell, recipe: Write) -> None:
    child = shell.start("submit", recipe(), "--name", "solo", "--follow", STANDIN_STEPS="30")
    shell.wait_step("solo", 2)
    child.send_signal(signal.SIGHUP)
    child.wait(timeout=20)
    assert shell.wait("solo")["state"] == "SUCCEEDED"


def test_ctrl_c_stops_following_and_not_the_run(shell: Shell, recipe: Write) -> None:
    child = shell.start("submit", recipe(), "--name", "watched", "--follow", STANDIN_STEPS="40")
    shell.wait_step("watched", 2)
    child.send_signal(signal.SIGINT)
    _, words = child.communicate(timeout=20)
    assert child.returncode == 130
    assert "Stopped following; watched goes on" in words and "llavajob cancel watched" in words
    assert shell.wait("watched")["state"] == "SUCCEEDED"


def test_follow_takes_the_runs_result_as_its_exit_code(shell: Shell, recipe: Write) -> None:
    good = shell("submit", recipe(), "--name", "good", "--follow")
    assert "step 5" in good.out and "good succeeded" in good.err
    bad = shell("submit", recipe(), "--name", "bad", "--follow", check=1, STANDIN_FAIL="exit:3")
    assert "no pictures" in bad.err and "Draw some." in bad.err


def test_cancel_saves_and_leaves_nothing(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "long", STANDIN_STEPS="1000")
    shell.wait_step("long", 3)
    assert len(shell.left("long")) == 5, "a supervisor, two agents, two grandchildren in sessions of their own"
    said = shell("cancel", "long")
    assert "no process is left" in said.err
    assert shell.left("long") == []
    status = shell.status("long")
    assert status["state"] == "CANCELLED" and f"saved at step {status['step']}" in status["reason"]
    again = shell("cancel", "long", check=2)
    assert "has ended already (CANCELLED)" in again.err and "llavajob resume long" in again.err


def test_cancel_ends_what_ignores_sigterm(shell: Shell, recipe: Write) -> None:
    name = recipe(retries={"grace_s": 1})
    shell("submit", name, "--name", "deaf", STANDIN_STEPS="1000", STANDIN_DEAF="1")
    shell.wait_step("deaf", 2)
    shell("cancel", "deaf")
    assert shell.left("deaf") == []
    assert shell.status("deaf")["state"] == "CANCELLED"


def test_cancel_ends_a_supervisor_that_hangs(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "hung", STANDIN_STEPS="1000")
    shell.wait_step("hung", 2)
    os.kill(shell.supervisor("hung"), signal.SIGSTOP)
    shell("cancel", "hung")
    assert shell.left("hung") == []
    assert shell.status("hung")["state"] == "CANCELLED"


def test_resume_goes_on_as_a_new_attempt_with_other_nodes(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "cut", STANDIN_STEPS="1000")
    shell.wait_step("cut", 3)
    shell("cancel", "cut")
    saved = shell.status("cut")["step"]
    shell("resume", "cut", "--nodes", "1", STANDIN_STEPS=str(saved + 3))
    done = shell.wait("cut")
    assert (done["state"], done["attempt"], done["step"]) == ("SUCCEEDED", 1, saved + 3)
    log = (shell.runs / "cut/attempts/1/rank0000.log").read_text()
    assert f"starts at step {saved} " in log
    assert not (shell.runs / "cut/attempts/1/rank0001.log").exists()
    origins = json.loads((shell.runs / "cut/run.json").read_text())["origins"]
    assert origins["resources.nodes"] == "--nodes"


def test_what_cannot_be_resumed_says_what_to_do(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "done")
    shell.wait("done")
    assert "has succeeded" in shell("resume", "done", check=2).err
    shell("submit", recipe(), "--name", "busy", STANDIN_STEPS="1000")
    shell.wait_step("busy", 1)
    assert "llavajob cancel busy" in shell("resume", "busy", check=2).err
    shell("cancel", "busy")
    shell("submit", recipe(), "--name", "none", STANDIN_FAIL="exit:3")
    shell.wait("none")
    for path in (shell.runs / "none/checkpoints").rglob("COMPLETE"):
        path.unlink()
    said = shell("resume", "none", check=2).err
    assert "no complete checkpoint" in said and "llavajob submit train" in said


def test_what_comes_next_is_never_a_command_that_is_refused(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "none", "--set", "retries.without_progress=0", STANDIN_FAIL="exit:3")
    shell.wait("none")
    for path in (shell.runs / "none/checkpoints").rglob("COMPLETE"):
        path.unlink()
    said = shell("status", "none").out
    assert "next: llavajob submit train.yaml --set retries.without_progress=0\n" in said
    assert "llavajob resume" not in said and shell("resume", "none", check=2).code == 2
    shell("submit", "train.yaml", "--name", "long", STANDIN_STEPS="1000")
    shell.wait_step("long", 2)
    shell("cancel", "long")
    assert "next: llavajob resume long\n" in shell("status", "long").out
    shell("resume", "long")


def test_a_killed_agent_is_followed_by_another_attempt(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "hit", STANDIN_FAIL="kill-progress", STANDIN_FAIL_ATTEMPTS="1")
    done = shell.wait("hit")
    assert (done["state"], done["attempts"]) == ("SUCCEEDED", 2)
    events = (shell.runs / "hit/events.jsonl").read_text()
    assert "SIGKILL" in events and "run.requeued" in events


def test_a_preempted_node_saves_and_the_run_goes_on(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "moved", STANDIN_STEPS="150")
    shell.wait_step("moved", 3)
    os.kill(shell.agents("moved")[0], signal.SIGTERM)
    done = shell.wait("moved")
    assert (done["state"], done["attempts"], done["step"]) == ("SUCCEEDED", 2, 150)
    events = (shell.runs / "moved/events.jsonl").read_text()
    assert "run.requeued" in events and "interrupted, state saved" in events


def test_attempts_without_progress_stop(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "stuck", "--nodes", "1", STANDIN_FAIL="error")
    done = shell.wait("stuck")
    assert (done["state"], done["attempts"]) == ("FAILED", 2)
    assert "2 attempts in a row without a new step" in done["reason"]
    assert done["failure"]["rank"] == 0 and "RuntimeError: boom" in done["failure"]["traceback"]
    shown = shell("status", "stuck").out
    assert "first failure: rank 0 on node 0 (here): RuntimeError: boom" in shown and "File x" in shown


def test_an_error_that_would_come_again_is_not_tried_again(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "final", "--nodes", "1", STANDIN_FAIL="exit:3")
    done = shell.wait("final")
    assert (done["state"], done["attempts"]) == ("FAILED", 1)
    assert "no pictures" in done["reason"]


def test_a_dead_supervisor_is_noticed_and_the_run_resumes(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "orphan", STANDIN_STEPS="1000")
    shell.wait_step("orphan", 2)
    os.kill(shell.supervisor("orphan"), signal.SIGKILL)
    dead = shell.wait("orphan")
    assert dead["state"] == "FAILED" and "its supervisor died" in dead["reason"]
    shell("cancel", "orphan")
    assert shell.left("orphan") == []
    shell("resume", "orphan", STANDIN_STEPS="3", check=None)


def test_a_machine_restart_is_told_apart(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "rebooted", STANDIN_STEPS="1000")
    shell.wait_step("rebooted", 2)
    shell("cancel", "rebooted")
    path = shell.runs / "rebooted/state.json"
    state = json.loads(path.read_text())
    state.update(state="RUNNING", ended=None, boot_time=psutil.boot_time() - 86400, pid=1, pid_started=1.0)
    path.write_text(json.dumps(state))
    seen = shell.status("rebooted")
    assert seen["state"] == "FAILED" and "machine was restarted" in seen["reason"]
    assert "is kept" in seen["reason"]


def test_gpus_are_queued_for_and_the_run_ahead_is_named(shell: Shell, recipe: Write) -> None:
    profiles = {"profiles": {"lab": {"backend": "local", "gpus": 2}}}
    (shell.folder / "llavajob.yaml").write_text(json.dumps(profiles))
    ask = ["--on", "lab", "--gpus-per-node", "1"]
    shell("submit", recipe(), "--name", "ahead", *ask, STANDIN_STEPS="1000")
    shell.wait_step("ahead", 1)
    shell("submit", recipe(), "--name", "behind", *ask)
    waiting = shell.wait("behind", "PENDING")
    shell.until(lambda: "behind ahead" in shell.status("behind")["reason"], "the run ahead named")
    assert waiting["step"] is None
    shell("cancel", "ahead")
    assert shell.wait("behind")["state"] == "SUCCEEDED"


def test_more_gpus_than_there_are_is_refused(shell: Shell, recipe: Write) -> None:
    said = shell("submit", recipe(), "--gpus-per-node", "4", check=2, CUDA_VISIBLE_DEVICES="").err
    assert "8 GPUs are asked for and this machine has none" in said and "--gpus-per-node 0" in said
    assert not shell.runs.exists()


def test_a_python_without_the_runtime_is_refused(shell: Shell, recipe: Write) -> None:
    bare = shell.folder / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    places = {
        name: {"backend": "local", "python": path} for name, path in {"gone": "/no/python", "bare": str(bare)}.items()
    }
    (shell.folder / "llavajob.yaml").write_text(json.dumps({"profiles": places}))
    assert "/no/python is not there" in shell("submit", recipe(), "--on", "gone", check=2).err
    assert "pip install 'llavajob[train]'" in shell("submit", recipe(), "--on", "bare", check=2).err


def test_a_pipeline_runs_its_stages_and_resumes_at_the_failed_one(shell: Shell, pipeline: Write) -> None:
    shell("submit", pipeline(), "--name", "pipe", STANDIN_FAIL="shard:1")
    failed = shell.wait("pipe")
    states = {step["name"]: step["state"] for step in failed["stages"]}
    assert states == {"learn": "SUCCEEDED", "merge": "SUCCEEDED", "score": "FAILED", "score-merge": "PENDING"}
    assert "score: shard 1: exit code 137 (SIGKILL)" in failed["reason"]
    shell("resume", "pipe", "--follow")
    done = shell.status("pipe")
    assert done["state"] == "SUCCEEDED"
    assert len(list((shell.runs / "pipe/stages/learn/attempts").iterdir())) == 1, "a finished stage is not run again"


def test_shards_run_apart_with_a_merge_after_them(shell: Shell, pipeline: Write) -> None:
    name = pipeline()
    result = shell("submit", name, "--name", "shards", "--set", "stages.score.eval.shards=4", "--follow")
    assert "answered by 4 shards, 4 asked for" in result.out


def test_two_runs_of_one_name_are_refused(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "twin")
    said = shell("submit", recipe(), "--name", "twin", check=2).err
    assert "there is a run named twin already" in said and "llavajob resume twin" in said
    shell.wait("twin")
