"""Stands in for the agent and its ranks: counts steps, starts a grandchild, saves and leaves when told to.

How it behaves is said by the environment: STANDIN_STEPS, STANDIN_STEP_S, STANDIN_FAIL (``exit:3``, ``kill``,
``error``), STANDIN_FAIL_ATTEMPTS (how many attempts fail), STANDIN_FAIL_NODE, STANDIN_DEAF (ignore both signals).
A file ``enough`` in the run's folder makes the next step the last one.
Each start leaves what the launcher gave it in ``started-NODE.json`` beside the logs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

config = yaml.safe_load(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
run, node = Path(config["run_dir"]), int(os.environ["LLAVAJOB_NODE"])
attempt = int(os.environ["LLAVAJOB_ATTEMPT"])
attempt_dir = Path(os.environ["LLAVAJOB_ATTEMPT_DIR"])
told = []
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN if "STANDIN_DEAF" in os.environ else lambda number, frame: told.append(number))

grandchild = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", grandchild], start_new_session=True)


def say(text):
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
    with (attempt_dir / f"rank{node:04d}.log").open("a") as log:
        log.write(f"{stamp} INFO {text}\n")


def save(step):
    if node:  # ranks that do not talk to each other cannot agree on a step
        return
    folder = run / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "COMPLETE").touch()


def error(**fields):
    path = attempt_dir / "errors" / f"rank{node:04d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"rank": node, "node": node, "host": "here", "time": time.time(), **fields}))


done = sorted(int(p.parent.name[5:]) for p in (run / "checkpoints").glob("step-*/COMPLETE"))
first, total = (done[-1] if done else 0), int(os.environ.get("STANDIN_STEPS", "5"))
(attempt_dir / f"started-{node}.json").write_text(json.dumps(dict(os.environ)))
say(f"node {node} starts at step {first} with {config['train']['device_batch']} per device")
how = os.environ.get("STANDIN_FAIL", "") if attempt < int(os.environ.get("STANDIN_FAIL_ATTEMPTS", "99")) else ""
for step in range(first + 1, total + 1):
    time.sleep(float(os.environ.get("STANDIN_STEP_S", "0.05")))
    say(f"step {step}")
    if node == 0:
        with (run / "metrics.jsonl").open("a") as metrics:
            row = {"time": time.time(), "step": step, "total_steps": total, "loss": 1.0 / step, "attempt": attempt}
            row |= {"samples_per_s": 10.0, "eta_s": 0.1 * (total - step)}
            metrics.write(json.dumps(row) + "\n")
    if (run / "enough").exists():
        total = step
        break
    if told and how and "progress" not in how:
        sys.exit(1)  # without its peer, a rank has nothing to save
    if told:
        save(step)
        say(f"saved because of {signal.Signals(told[0]).name}")
        sys.exit(175)
    if how and step == first + 2 and node == int(os.environ.get("STANDIN_FAIL_NODE", "0")):
        if "progress" in how:
            save(step)
        if "kill" in how:
            error(exit_code=-9, signal="SIGKILL")
            os.kill(os.getpid(), signal.SIGKILL)
        if "error" in how:
            text = "Traceback (most recent call last):\n  File x\nRuntimeError: boom"
            error(exit_code=1, exception="RuntimeError", message="boom", traceback=text)
            sys.exit(1)
        if "exit:" in how:
            error(exit_code=3, exception="DataError", message="no pictures", hint="Draw some.", final=True)
            sys.exit(3)
save(total)
sys.exit(0)
