"""What is lost when processes are killed on Slurm: ``python -m tests.benchmarks.slurm_kills [KILLS] [SEED]``.

Training: one run of two nodes is hit again and again at random moments, in turn in a rank, an agent, the batch script
and a node's slurmd (``--kinds`` chooses others: ``task`` is what submitit starts on a node, ``node`` a power cut:
slurmd with all that runs on its node). Its losses are compared with those of an untouched run. Evaluation: half as many
times all members of an array job are hit, in turn in their shard's process, submitit's task and the batch script; the
rows are counted. Meanwhile ``status --json`` is asked all the time, and what it said that was not so is listed.
``--only training`` or ``--only evaluation`` does one of both.

The daemons that are killed are a bed's, so this never runs on another cluster. A requeued job waits two minutes for
Slurm; that wait is cut short.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.compare import compare_rows, compare_training, eval_recipe
from tests.benchmarks.kills import processes
from tests.benchmarks.slurm_place import ENDED, Place, call, in_words, insist, parser, place, wait, wait_state
from tests.slurm.bed import NODES, BedError
from tests.world import build_world, train_recipe, write_recipe

TRAINING = ("rank", "agent", "batch", "slurmd")
MORE_TRAINING = ("task", "node")
EVALUATION = ("shard", "task", "batch")
ENDS_THE_JOB = ("batch",)
STEPS_PER_KILL = 150
ASK_S, MOST_S = 0.5, 300.0
# A slurmd comes back at once; a node stays away for longer than Slurm waits for it (SlurmdTimeout).
DOWN_S = {"slurmd": 4.0, "node": 45.0}


@dataclass
class Seen:
    """What one call of status said."""

    moment: float
    state: str
    reason: str
    step: int
    attempts: int
    wrong: str = ""
    """Why it cannot be true."""

    def __str__(self) -> str:
        return f"{self.state} at step {self.step}, attempts {self.attempts}{self.reason and f' ({self.reason})'}"


@dataclass
class Witness:
    """Asks for a run's status all the time, and notes what cannot be true."""

    run: str
    begun: float = field(default_factory=time.monotonic)
    may_have_ended: bool = False
    """Whether the run may have failed: its job was ended, and it was not yet resumed."""
    log: list[Seen] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Witness:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            allowed = self.may_have_ended
            done = call("status", self.run, "--json")
            allowed |= self.may_have_ended
            self.log.append(self._noted(done.out, done.err, allowed))
            self._stopping.wait(ASK_S)

    def _noted(self, out: str, err: str, allowed: bool) -> Seen:
        moment = time.monotonic() - self.begun
        try:
            values = json.loads(out)
        except ValueError:
            return Seen(moment, "NO ANSWER", " ".join(err.split()), 0, 0, "no answer")
        seen = Seen(moment, values["state"], values["reason"], values["step"] or 0, values["attempts"])
        if seen.state == "UNKNOWN":
            seen.wrong = "unknown"
        elif seen.state in ("FAILED", "CANCELLED") and not allowed:
            seen.wrong = "ended, though nothing was done that ends it"
        elif seen.state == "SUCCEEDED" and seen.step < (values["total_steps"] or 1):
            seen.wrong = "succeeded before its last step"
        return seen

    def next(self) -> Seen:
        """What the next call that begins from now on says."""
        begun = len(self.log) + 1
        return wait(lambda: len(self.log) > begun and self.log[-1], "an answer of status", pause_s=0.05)

    def report(self, title: str) -> None:
        """Print how often each state was seen, and every wrong one (repetitions once)."""
        print(f"{title}: status asked {len(self.log)} times: {in_words(Counter(seen.state for seen in self.log))}")
        wrong = [seen for seen in self.log if seen.wrong]
        print(f"{title}: wrong answers: {len(wrong)}")
        for text, number in Counter(f"{seen.wrong}: {seen}" for seen in wrong).items():
            print(f"  {number} x {text}")

    def keep(self, path: Path) -> None:
        """Append the whole log to a file."""
        with path.open("a") as file:
            for seen in self.log:
                file.write(f"{self.run} {seen.moment:7.1f} {seen} {seen.wrong and 'WRONG: ' + seen.wrong}\n")


@dataclass
class Target:
    """A run that is hit."""

    work: Place
    name: str
    rng: random.Random
    witness: Witness
    hits: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    told_after: list[float] = field(default_factory=list)
    """Seconds from the end of a job to a status that says so."""
    left_when_told: Counter[str] = field(default_factory=Counter)
    """Processes of the run that were still there when status said that it had ended, by what had been hit."""

    @property
    def folder(self) -> Path:
        return self.work.runs / self.name

    def job(self) -> str:
        """The newest job of the run's first step."""
        return str(json.loads((self.folder / "slurm/jobs.json").read_text())["jobs"][0]["job_id"])

    def victims(self, kind: str) -> list[psutil.Process]:
        """The run's processes of one kind."""
        if kind == "batch":
            return batch_scripts(self.work, self.job())
        if kind == "task":
            return tasks(self.folder)
        return processes(self.folder, kind)

    def hit(self, kind: str, every: bool = False) -> bool:
        """Kill one process of a kind, or all of them; whether there was any."""
        if kind in ("slurmd", "node"):
            node = self.rng.choice(NODES)
            print(f"  {kind} of {node}", flush=True)
            hit_node(self.work, node, kind)
            self.hits[kind] += 1
            return True
        victims = self.victims(kind)
        if ends := kind in ENDS_THE_JOB or every:
            self.witness.may_have_ended = ends
        for victim in victims if every else self.rng.sample(victims, min(1, len(victims))):
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
                self.hits[kind] += 1
        return bool(victims)

    def go_on(self, hit: str) -> None:
        """Wait for the end of a job that was ended, and resume the run at once, as soon as status says so."""
        begun = time.monotonic()
        state = wait_state(self.name, *ENDED, most_s=MOST_S)["state"]
        self.told_after.append(time.monotonic() - begun)
        left = sum(len(processes(self.folder, kind)) for kind in ("rank", "agent", "shard"))
        self.left_when_told += Counter({f"after a hit {hit}": left})
        if state == "SUCCEEDED":
            return
        done = call("resume", self.name)
        if done.code:
            self.notes[f"resume ended with {done.code}: {' '.join(done.err.split())}"] += 1
            time.sleep(5)
            insist("resume", self.name)
        self.witness.may_have_ended = False

    def await_progress(self) -> bool:
        """Wait until the run has gone further than it is; False: it has succeeded. Requeued jobs are let go."""
        before = self.witness.next()
        deadline, released = time.monotonic() + MOST_S, 0.0
        while (seen := self.witness.next()).step <= before.step or seen.state != "RUNNING":
            if seen.state == "SUCCEEDED":
                return False
            if seen.state in ENDED:
                self.notes[f"ended by itself: {seen.reason}"] += 1
                self.go_on("nothing")
            elif time.monotonic() - released > 3 and release(self.work, self.job()):
                self.notes["requeued and let go"] += 1
                released = time.monotonic()
            if time.monotonic() > deadline:
                raise SystemExit(f"no progress for {MOST_S:.0f} s: {seen}\n{self.last_words()}")
        return True

    def last_words(self) -> str:
        """What can be seen of a run that is stuck."""
        logs = sorted(self.folder.glob("slurm/*.out"))
        words = "".join(f"== {path.name}\n{path.read_text()[-1500:]}\n" for path in logs)
        lines = [" ".join(process.cmdline()) for kind in ("task", "agent", "rank") for process in self.victims(kind)]
        told = [key for key, _ in groupby(map(str, self.witness.log))]
        return "\n".join([self.work.cluster.call("squeue"), *lines, words, *told[-30:]])

    def await_end(self) -> None:
        """Let the run come to its end."""
        while self.witness.next().state not in ENDED:
            if release(self.work, self.job()):
                self.notes["requeued and let go"] += 1
                time.sleep(3)

    def report(self, title: str) -> None:
        """Print what was done to the run and what status said meanwhile."""
        end = self.witness.log[-1]
        print(f"{title}: {sum(self.hits.values())} processes killed: {in_words(self.hits)}")
        for note, number in self.notes.items():
            print(f"{title}: {number} x {note}")
        print(f"{title}: {end}")
        if self.told_after:
            print(f"{title}: a job's end was told after at most {max(self.told_after):.1f} s")
            print(f"{title}: processes of the run still there when its end was told: {in_words(self.left_when_told)}")
        self.witness.report(title)


def batch_scripts(work: Place, job: str) -> list[psutil.Process]:
    """The shells that run a job's script, or those of an array's members; no subshells."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line, environment = process.cmdline(), process.environ()
            own = job in (environment.get("SLURM_JOB_ID"), environment.get("SLURM_ARRAY_JOB_ID"))
            own &= environment.get("SLURM_CONF") == work.cluster.environment["SLURM_CONF"]
            if own and line[1:] and line[1].endswith("/slurm_script"):
                found.append(process)
    ids = {process.pid for process in found}
    return [process for process in found if process.ppid() not in ids]


def tasks(folder: Path) -> list[psutil.Process]:
    """The processes that submitit starts on the nodes of a run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = process.cmdline()
            if line[-2:] == ["submitit.core._submit", str(folder / "slurm")] and "python" in Path(line[0]).name:
                found.append(process)
    return found


def hit_node(work: Place, node: str, kind: str) -> None:
    """Kill a node's daemon, or the node with all that runs on it, and start it again after some seconds."""
    if kind == "node":
        work.bed.kill_node(node)
    else:
        slurmd(work, node).send_signal(signal.SIGKILL)
    time.sleep(DOWN_S[kind])
    work.bed.start_node(node)


def slurmd(work: Place, node: str) -> psutil.Process:
    """A node's daemon."""
    for process in map(psutil.Process, work.bed.pids()):
        with suppress(psutil.Error):
            line = process.cmdline()
            if line and Path(line[0]).name == "slurmd" and node in line:
                return process
    raise SystemExit(f"no slurmd on {node}")


def release(work: Place, job: str) -> bool:
    """Let a requeued job start now; False: it does not wait for its time."""
    with suppress(BedError):
        waits = work.cluster.call("squeue", "--noheader", f"--jobs={job}", "--format=%T %r").split()
        if waits == ["PENDING", "BeginTime"]:
            work.cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now")
            return True
    return False


def hit_training(work: Place, world: Path, kinds: list[str], kills: int, rng: random.Random) -> Witness:
    """Hit one long run and compare it with an untouched one."""
    steps = STEPS_PER_KILL * kills
    recipe = str(write_recipe(world / "long.yaml", train_recipe(world, steps, save_every=50)))
    begun = time.monotonic()
    insist("submit", recipe, "--on", "slurm", "--name", "whole")
    end = wait_state("whole", *ENDED, most_s=3600)
    print(f"training: {steps} steps untouched: {untouched(end, begun)}", flush=True)
    insist("submit", recipe, "--on", "slurm", "--name", "hit")
    with Witness("hit") as witness:
        target = Target(work, "hit", rng, witness)
        done = 0
        while done < kills and target.await_progress():
            kind = kinds[done % len(kinds)]
            time.sleep(rng.uniform(0, 1.0))
            if not target.hit(kind):
                continue
            done += 1
            print(f"kill {done}: {kind} at about step {witness.log[-1].step}", flush=True)
            if kind in ENDS_THE_JOB:
                target.go_on(kind)
        target.await_end()
    compare_training(work.runs / "whole", target.folder, steps)
    target.report("training")
    return witness


def untouched(end: dict[str, Any], begun: float) -> str:
    """How the run ended that nobody hit."""
    return f"{end['state']} in {time.monotonic() - begun:.0f} s, attempts {end['attempts']}"


def hit_evaluation(work: Place, world: Path, kills: int, rng: random.Random) -> Witness:
    """Hit the members of an array job and count the rows."""
    recipe, begun = eval_recipe(world, kills), time.monotonic()
    insist("submit", recipe, "--on", "slurm", "--name", "rows-whole")
    end = wait_state("rows-whole", *ENDED, most_s=3600)
    print(f"evaluation: untouched: {untouched(end, begun)}", flush=True)
    insist("submit", recipe, "--on", "slurm", "--name", "rows-hit")
    with Witness("rows-hit") as witness:
        target = Target(work, "rows-hit", rng, witness)
        done = 0
        while done < kills and target.await_progress():
            kind = EVALUATION[done % len(EVALUATION)]
            time.sleep(rng.uniform(0, 1.0))
            # All members at once: one that is spared would do all that it has to do before the run ends.
            if not target.hit(kind, every=True):
                continue
            done += 1
            print(f"kill {done}: every {kind} at about row {witness.log[-1].step}", flush=True)
            target.go_on(kind)
        target.await_end()
    compare_rows(work.runs / "rows-whole", target.folder)
    target.report("evaluation")
    return witness


def main() -> None:
    """Run both and print what was lost."""
    asked = parser(__doc__, system=False)
    asked.add_argument("kills", nargs="?", type=int, default=20)
    asked.add_argument("seed", nargs="?", type=int, default=0)
    asked.add_argument("--kinds", default=",".join(TRAINING), help="of kills in training: %(default)s; also: task,node")
    asked.add_argument("--only", choices=("training", "evaluation"))
    asked.add_argument("--log", type=Path, help="append all that status said to this file")
    options = asked.parse_args()
    kinds = options.kinds.split(",")
    if unknown := set(kinds) - {*TRAINING, *MORE_TRAINING}:
        asked.error(f"no such kind: {', '.join(unknown)}")
    rng, witnesses = random.Random(options.seed), []
    with place() as work:
        world = build_world(work.folder / "world")
        if options.only != "evaluation":
            witnesses.append(hit_training(work, world, kinds, options.kills, rng))
        if options.only != "training":
            witnesses.append(hit_evaluation(work, world, max(1, options.kills // 2), rng))
    for witness in witnesses if options.log else ():
        witness.keep(options.log)


if __name__ == "__main__":
    main()
