"""What is lost when processes are killed at random moments: ``python -m tests.benchmarks.kills [KILLS] [SEED]``.

Training: one run of two nodes is hit by kill -9 again and again, in turn a rank, an agent and the supervisor; its
losses are compared with those of an untouched run. Evaluation: shards are killed in the same way; the rows are counted.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from tests.llava.tiny_hf import build_llava, some_rows, write_tsv
from tests.world import PLACE, build_world, losses, metrics, train_recipe, write_recipe

LLAVAJOB = str(Path(sys.executable).with_name("llavajob"))
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")


def call(*arguments: str) -> str:
    """Run llavajob and return what it printed."""
    done = subprocess.run([LLAVAJOB, *arguments], capture_output=True, text=True, check=False)
    return done.stdout


def status(run: str) -> dict[str, Any]:
    """The run's status; empty before it is there."""
    text = call("status", run, "--json")
    return dict(json.loads(text)) if text else {}


def processes(folder: Path, kind: str) -> list[psutil.Process]:
    """The run's processes of one kind: rank, agent, supervisor or shard."""
    words = {"rank": "llava.train", "agent": "llava.agent", "shard": "llava.mmbench"}
    words["supervisor"] = "launcher.backends.local.supervisor"
    found = []
    for process in psutil.process_iter():
        try:
            line, mark = process.cmdline(), process.environ().get("LLAVAJOB_RUN")
        except psutil.Error:
            continue
        if mark == str(folder) and "-m" in line and line[line.index("-m") + 1] == words[kind]:
            found.append(process)
    return found


def wait(run: str, *states: str) -> dict[str, Any]:
    """Wait until a run is in one of the states."""
    while (seen := status(run)).get("state") not in states:
        time.sleep(0.2)
    return seen


def resume_when_dead(run: str, folder: Path) -> None:
    """Go on with a run whose supervisor is gone, once its processes have left."""
    while any(processes(folder, kind) for kind in ("rank", "agent", "shard")):
        time.sleep(0.1)
    call("resume", run)


def hit_training(kills: int, world: Path, runs: Path, rng: random.Random) -> None:
    """Hit one long run and compare it with an untouched one."""
    steps = 60 * kills
    recipe = str(write_recipe(world / "long.yaml", train_recipe(world, steps, save_every=50)))
    print(call("submit", recipe, "--name", "whole"), end="", flush=True)
    wait("whole", *ENDED)
    call("submit", recipe, "--name", "hit")
    hits: Counter[str] = Counter()
    folder = runs / "hit"
    for number in range(kills):
        before = status("hit").get("step") or 0
        while (seen := status("hit"))["state"] not in ENDED and (seen.get("step") or 0) <= before:
            time.sleep(0.1)
        if seen["state"] in ENDED:
            break
        kind = ("rank", "agent", "supervisor")[number % 3]
        time.sleep(rng.uniform(0, 1.0))
        victims = processes(folder, kind)
        if not victims:
            continue
        rng.choice(victims).send_signal(signal.SIGKILL)
        hits[kind] += 1
        print(f"kill {number + 1}: {kind} at about step {seen['step']}", flush=True)
        if kind == "supervisor":
            wait("hit", *ENDED)
            resume_when_dead("hit", folder)
    end = wait("hit", *ENDED)
    seen_steps = Counter(line["step"] for line in metrics(folder))
    repeated = sum(count - 1 for count in seen_steps.values())
    equal = losses(folder) == losses(runs / "whole")
    print(
        f"training: {dict(hits)} kills, {end['state']} at step {end['step']} of {steps} in {end['attempts']} attempts"
    )
    print(f"training: updates done twice {repeated}, losses and gradient norms equal bit for bit: {equal}")


def hit_evaluation(kills: int, world: Path, runs: Path, rng: random.Random) -> None:
    """Hit the shards of one evaluation and count its rows."""
    model = build_llava(world / "llava", world / "language", world / "vision")
    data = write_tsv(world / "rows.tsv", some_rows(1000))
    values: dict[str, Any] = {
        "kind": "eval",
        "resources": {"nodes": 2},
        "environment": PLACE,
        "eval": {"model": str(model), "data": str(data), "template": "vicuna", "batch": 1, "max_new_tokens": 80},
    }
    recipe = str(write_recipe(world / "rows.yaml", values))
    call("submit", recipe, "--name", "rows-whole")
    wait("rows-whole", *ENDED)
    call("submit", recipe, "--name", "rows-hit")
    folder, hits = runs / "rows-hit", Counter[str]()
    for number in range(kills):
        before = status("rows-hit").get("step") or 0
        while (seen := status("rows-hit"))["state"] not in ENDED and (seen["step"] or 0) <= before:
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 1.0))
        kind = ("shard", "shard", "supervisor")[number % 3]
        victims = processes(folder, kind)
        if seen["state"] in ENDED or not victims:
            break
        # All shards at once: one that is spared would do all that it has to do before the run ends.
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        hits[kind] += len(victims)
        print(f"kill {number + 1}: {kind} at about row {seen['step']}", flush=True)
        wait("rows-hit", *ENDED)
        resume_when_dead("rows-hit", folder)
    end = wait("rows-hit", *ENDED)
    whole, hit = (rows(runs / name) for name in ("rows-whole", "rows-hit"))
    lost = len(whole.keys() - hit.keys())
    print(f"evaluation: {dict(hits)} kills, {end['state']} in {end['attempts']} attempts")
    print(f"evaluation: {len(hit)} rows, {lost} lost, equal to the untouched run's: {whole == hit}")


def rows(run: Path) -> dict[str, str]:
    """Predictions by row; a row that stands twice is an error."""
    lines = (run / "eval/mmbench/predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    found = {str(record["index"]): str(record["prediction"]) for record in records}
    if len(found) != len(records):
        raise SystemExit(f"{len(records) - len(found)} rows stand twice")
    return found


def main() -> None:
    """Run both and print what was lost."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    with tempfile.TemporaryDirectory() as name:
        runs = Path(name) / "runs"
        os.environ["LLAVAJOB_RUNS"] = str(runs)
        world = build_world(Path(name) / "world")
        hit_training(kills, world, runs, rng)
        hit_evaluation(kills // 2, world, runs, rng)


if __name__ == "__main__":
    main()
