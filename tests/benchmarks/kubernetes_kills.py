"""What is lost when pods and processes are hit: ``python -m tests.benchmarks.kubernetes_kills [HITS] [SEED]``.

Training: one run of two pods is hit at random moments, in turn by deleting a pod and by killing a rank, of the master
and of the worker; each pod half of the times without a moment to save. Said of each hit: seconds from the hit, and from
the start of the new pod's container, to the first update of the next attempt. The losses are compared with those of an
untouched run. Evaluation: half as many times every shard's process is killed; the rows are counted.

It starts a bed, whose programs have to be built (``python -m tests.kubernetes.bed build``).
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from launcher.shipped import manifests_folder
from tests.benchmarks.compare import compare_rows, compare_training, eval_recipe
from tests.benchmarks.kills import processes
from tests.benchmarks.slurm_place import ENDED, environment, in_words, insist, status, wait, wait_state
from tests.kubernetes.bed import Bed, missing
from tests.kubernetes.build import missing_programs
from tests.kubernetes.image import IMAGE, host_folders
from tests.world import build_world, train_recipe, write_recipe

NAMESPACE = "default"
STEPS_PER_HIT, SAVE_EVERY = 150, 50
MOST_S = 300.0
HITS = ("delete worker", "kill master", "delete master now", "kill worker", "delete worker now", "delete master")
"""In turn; ``now``: without a moment to save. A pod is deleted, a rank is killed."""


@dataclass
class Place:
    """Where the script works."""

    bed: Bed
    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"


@contextmanager
def place() -> Iterator[Place]:
    """A bed and an empty folder that its pods see at the same path."""
    reason = missing() or missing_programs()
    if reason:
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as name, Bed() as bed, environment(Path(name), **bed.environment):
        work = Place(bed, Path(name))
        work.runs.mkdir()
        work.folder.chmod(0o755)
        seen = [{"mount": str(path), "host_path": str(path), "read_only": True} for path in host_folders()]
        keys = {
            "namespace": NAMESPACE, "image": IMAGE, "pull_policy": "Never",
            "volumes": [*seen, {"mount": name, "host_path": name}],
            "run_as": {"user": 0, "group": 0, "fs_group": None},
        }  # fmt: skip
        profile = {"backend": "kubernetes", "python": sys.executable, "kubernetes": keys}
        (work.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"pods": profile}}))
        bed.kubectl("apply", f"--namespace={NAMESPACE}", "--filename", str(manifests_folder() / "service-account.yaml"))
        yield work


@dataclass
class Times:
    """Seconds to the next update, hit by hit."""

    from_hit: dict[str, list[float]] = field(default_factory=dict)
    from_start: list[float] = field(default_factory=list)

    def report(self) -> None:
        """Print them by the kind of hit."""
        for kind, values in self.from_hit.items():
            print(f"training: {kind}: next update after {', '.join(f'{v:.1f}' for v in values)} s")
        values = [value for some in self.from_hit.values() for value in some]
        print(f"training: from the hit: median {statistics.median(values):.1f} s, most {max(values):.1f} s")
        if self.from_start:
            middle, most = statistics.median(self.from_start), max(self.from_start)
            print(f"training: from the new pod's start: median {middle:.1f} s, most {most:.1f} s")


def updates(run: Path) -> list[dict[str, Any]]:
    """What training has logged of its updates."""
    with suppress(OSError):
        lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]
    return []


def step_of(run: Path) -> int:
    """The newest update."""
    return int(updates(run)[-1]["step"]) if updates(run) else 0


def first_of_next(run: Path, attempt: int) -> dict[str, Any] | None:
    """The first update of an attempt after that one."""
    return next((line for line in updates(run) if line["attempt"] > attempt), None)


def pod_start(work: Place, pod: str) -> float:
    """When a pod's container started; zero: it has not."""
    for found in work.bed.get("pods", namespace=NAMESPACE)["items"]:
        if found["metadata"]["name"] == pod:
            states = [one["state"] for one in found["status"].get("containerStatuses", [])]
            texts = [state["running"]["startedAt"] for state in states if "running" in state]
            return datetime.fromisoformat(texts[0].replace("Z", "+00:00")).timestamp() if texts else 0.0
    return 0.0


def hit(work: Place, run: Path, kind: str, rng: random.Random) -> str:
    """Delete a pod or kill a rank; return the pod's name."""
    role = "master" if "master" in kind else "worker"
    pod = f"{run.name}-{role}-0"
    if kind.startswith("delete"):
        how = ("--force", "--grace-period=0") if kind.endswith("now") else ("--wait=false",)
        work.bed.kubectl("delete", "pod", pod, f"--namespace={NAMESPACE}", *how)
        return pod
    node = "0" if role == "master" else "1"
    ranks = [p for p in processes(run, "rank") if p.environ()["LLAVAJOB_NODE"] == node]
    rng.choice(ranks).kill()
    return pod


def hit_training(work: Place, world: Path, hits: int, rng: random.Random) -> None:
    """Hit one long run and compare it with an untouched one."""
    steps = STEPS_PER_HIT * hits
    values = train_recipe(world, steps, save_every=SAVE_EVERY)
    values["resources"]["threads_per_process"] = 1
    recipe = str(write_recipe(world / "long.yaml", values))
    insist("submit", recipe, "--on", "pods", "--name", "whole")
    end = wait_state("whole", *ENDED, most_s=3600)
    print(f"training: {steps} updates untouched: {end['state']}, attempts {end['attempts']}", flush=True)
    insist("submit", recipe, "--on", "pods", "--name", "hit")
    run, times = work.runs / "hit", Times()
    for number in range(hits):
        kind = HITS[number % len(HITS)]
        step = step_of(run)
        wait(lambda step=step: step_of(run) > step + 3, "progress", MOST_S)
        time.sleep(rng.uniform(0, 1.0))
        attempt, moment = int(updates(run)[-1]["attempt"]), time.time()
        pod = hit(work, run, kind, rng)
        update = wait(lambda attempt=attempt: first_of_next(run, attempt), "the next attempt", MOST_S)
        took = update["time"] - moment
        times.from_hit.setdefault(kind, []).append(took)
        if kind.startswith("delete"):
            times.from_start.append(update["time"] - max(pod_start(work, pod), moment))
        print(f"hit {number + 1}: {kind}: {took:.1f} s to the next update", flush=True)
    end = wait_state("hit", *ENDED, most_s=3600)
    print(f"training: {end['state']} at step {end['step']}, attempts {end['attempts']} {end['reason']}")
    compare_training(work.runs / "whole", run, steps)
    times.report()


def hit_evaluation(work: Place, world: Path, hits: int, rng: random.Random) -> None:
    """Kill the shards of an evaluation again and again, resume it, and count the rows."""
    recipe = eval_recipe(world, hits)
    insist("submit", recipe, "--on", "pods", "--name", "rows-whole")
    wait_state("rows-whole", *ENDED, most_s=3600)
    insist("submit", recipe, "--on", "pods", "--name", "rows-hit")
    run, killed = work.runs / "rows-hit", 0
    for number in range(hits):
        before = answered(run)
        wait(lambda before=before: answered(run) > before + 3 or ended("rows-hit"), "answers", MOST_S)
        time.sleep(rng.uniform(0, 1.0))
        for process in processes(run, "shard"):
            with suppress(psutil.NoSuchProcess):
                process.kill()
                killed += 1
        state = wait_state("rows-hit", *ENDED, most_s=MOST_S)
        print(f"kill {number + 1}: {killed} shards in all, {answered(run)} rows answered: {state['state']}", flush=True)
        if state["state"] == "SUCCEEDED":
            break
        insist("resume", "rows-hit")
    wait_state("rows-hit", *ENDED, most_s=3600)
    compare_rows(work.runs / "rows-whole", run)


def ended(run: str) -> bool:
    return status(run).get("state") in ENDED


def answered(run: Path) -> int:
    """Rows answered so far."""
    return sum(path.read_bytes().count(b"\n") for path in run.glob("eval/mmbench/answers/*.jsonl"))


def main() -> None:
    """Run both and print what was lost."""
    asked = ArgumentParser(description=__doc__)
    asked.add_argument("hits", nargs="?", type=int, default=20)
    asked.add_argument("seed", nargs="?", type=int, default=0)
    asked.add_argument("--only", choices=("training", "evaluation"))
    options = asked.parse_args()
    rng, parts = random.Random(options.seed), Counter[str]()
    with place() as work:
        world: Any = build_world(work.folder / "world")
        if options.only != "evaluation":
            parts["training"] += options.hits
            hit_training(work, world, options.hits, rng)
        if options.only != "training":
            parts["evaluation"] += options.hits // 2
            hit_evaluation(work, world, max(1, options.hits // 2), rng)
    print(f"hits: {in_words(parts)}")


if __name__ == "__main__":
    main()
