"""A node of a Slurm job that falls silent is named by the others, which leave; real processes, without Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from launcher.backends.base import RUNNING
from launcher.exits import exit_codes, expect_exits
from launcher.plan import Step
from launcher.run_folder import RunFolder, read_json
from launcher.step_word import Word, read_word, write_word

NODE = """
import sys
from pathlib import Path
from launcher.backends.slurm import heartbeat, task
from launcher.plan import Step
from launcher.run_folder import RunFolder
heartbeat.BEAT_S, heartbeat.SILENCE_S, task.LOST_PEER_GRACE_S = 0.2, 3.0, 2.0
command = (sys.executable, "-c", "import time; time.sleep(600)")
step = Step("train", "", "gang", 2, 1, 0, 1, 2, None, command, {}, 3, 30)
sys.exit(task.Task(RunFolder(Path(sys.argv[1])), "", step, 0, int(sys.argv[2])).run())
"""
STEP = Step("train", "", "gang", 2, 1, 0, 1, 2, None, ("python",), {}, 3, 30)


def start(folder: Path, number: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", NODE, str(folder), str(number)],
        env={**os.environ, "SLURMD_NODENAME": f"gpu{number}"},
        start_new_session=True,
    )


def test_a_silent_node_is_named_and_left(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    expect_exits(run, STEP, 0)
    write_word(run, "train", None, Word(job_id="7", state=RUNNING))
    nodes = [start(tmp_path, number) for number in range(2)]
    beats = [run.attempt(0) / f"beats/node{number:04d}.json" for number in range(2)]
    try:
        deadline = time.monotonic() + 60
        while not all((read_json(beat) or {}).get("beat", 0) > 20 for beat in beats):
            assert time.monotonic() < deadline and nodes[0].poll() is None
            time.sleep(0.05)
        assert read_word(run, "train").reason == "", "nobody is lost who is heard"
        os.kill(nodes[1].pid, signal.SIGSTOP)
        assert nodes[0].wait(60) == 128 + signal.SIGTERM
        assert read_word(run, "train").reason == (
            "node 1 (gpu1) was lost: not heard for 3 s (did its machine lose power or network?)"
        )
        assert exit_codes(run, STEP, 0) == [128 + signal.SIGTERM, None]
    finally:
        for node in nodes:
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
