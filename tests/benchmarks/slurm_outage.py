"""What commands do while slurmctld is away: ``python -m tests.benchmarks.slurm_outage [SECONDS] [--how stop,freeze]``.

Two trainings run: one that the accounting knows and that is followed, and one that has just begun. Then the controller
goes for a minute, and ``status``, ``list`` and ``submit`` are called. ``stop`` ends slurmctld, so that nothing listens;
``freeze`` halts it, so that requests reach its socket, wait there, and are answered when nobody listens any more. What
each printed and returned is shown, with its time; then how many jobs the submission made. The daemon is a bed's, so
this never runs on another cluster.
"""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.benchmarks.slurm_place import (
    LLAVAJOB,
    Done,
    Place,
    call,
    in_words,
    insist,
    parser,
    place,
    spread,
    standin_recipe,
    status,
    wait,
    wait_state,
)

STEP_S = 0.2
SETTLE_S = 10.0
FIRST_ASKED_S = 2.0


@dataclass
class Follower:
    """``logs --follow`` of a run, with the moment of each line."""

    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)
    words: list[tuple[float, str]] = field(default_factory=list)

    @classmethod
    def of(cls, run: str) -> Follower:
        command = [LLAVAJOB, "logs", run, "--follow"]
        pipe = subprocess.PIPE
        made = cls(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        for stream, kept in ((made.process.stdout, made.lines), (made.process.stderr, made.words)):
            threading.Thread(target=lambda s=stream, k=kept: k.extend((time.time(), line) for line in s)).start()
        return made

    def report(self, begun: float, ended: float) -> None:
        """Print what came while the controller was away."""
        moments = [moment for moment, line in self.lines if begun < moment < ended and "step " in line]
        gaps = [b - a for a, b in zip([begun, *moments], [*moments, ended], strict=True)]
        print(f"logs --follow: {len(moments)} lines meanwhile, longest silence {max(gaps):.1f} s")
        print(f"logs --follow: {'still there' if self.process.poll() is None else 'ended'} after the outage")
        for moment, line in self.words:
            print(f"  {moment - begun:+6.1f} s stderr: {line.rstrip()}")


@contextmanager
def away(work: Place, how: str, seconds: float) -> Iterator[float]:
    """No controller for so long, whatever happens meanwhile; yield when it went."""
    daemon = controller(work)
    if how == "freeze":
        daemon.send_signal(signal.SIGSTOP)
    else:
        work.bed.stop_controller()
    begun = time.time()

    def back() -> None:
        time.sleep(seconds)
        daemon.send_signal(signal.SIGCONT) if how == "freeze" else work.bed.start_controller()

    thread = threading.Thread(target=back)
    thread.start()
    try:
        yield begun
    finally:
        thread.join()


def controller(work: Place) -> psutil.Process:
    """The bed's slurmctld."""
    for process in map(psutil.Process, work.bed.pids()):
        line = process.cmdline()
        if line and Path(line[0]).name == "slurmctld" and "-D" in line:
            return process
    raise SystemExit("no slurmctld")


@dataclass
class Asker:
    """Calls one command again and again while the controller is away."""

    command: tuple[str, ...]
    until: float
    answers: list[tuple[float, Done]] = field(default_factory=list)

    def run(self) -> None:
        while (moment := time.time()) < self.until:
            self.answers.append((moment, call(*self.command)))
            time.sleep(1.0)

    def report(self, begun: float) -> None:
        """Print each different answer once, and how long they took."""
        name = f"llavajob {' '.join(self.command)}"
        took = [done.took for _, done in self.answers]
        times = spread(took) if len(took) > 1 else f"{took[0]:.1f} s"
        print(f"{name}: {len(took)} calls, {times}")
        print(f"{name}: exit codes {in_words(Counter(str(done.code) for _, done in self.answers))}")
        seen = Counter(short(done) for _, done in self.answers)
        for text, number in seen.items():
            print(f"  {number} x {text}")


def short(done: Done) -> str:
    """States and reasons in an answer, and what was said beside it."""
    try:
        values = json.loads(done.out)
    except ValueError:
        values = []
    runs = values if isinstance(values, list) else [values]
    told = [f"{run['run']} {run['state']} {run['reason']}" for run in runs]
    return " / ".join(" ".join(text.split()) for text in (*told, *done.err.splitlines()))


def submitted(work: Place, name: str, ended: float) -> None:
    """Submit a run while the controller is away, and count its jobs when it is back."""
    done = call("submit", str(work.folder / "standin.yaml"), "--on", "slurm", "--name", name, "--set", "slurm.mem=1000")
    print(f"submit: ended with {done.code} after {done.took:.1f} s, {time.time() - ended:+.1f} s from the return")
    for text, number in Counter(done.err.splitlines()).items():
        print(f"  {number} x {text}")
    time.sleep(SETTLE_S)
    queued = work.cluster.call("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%i").split()
    print(f"submit: jobs of that name: {len(queued)} in squeue, {accounted(work, name)} in sacct")
    print(f"submit: status says {status(name).get('state', 'nothing')}")


def outage(work: Place, how: str, seconds: float) -> None:
    """One outage."""
    old, fresh, new = (f"{word}-{how}" for word in ("old", "fresh", "new"))
    start(work, old)
    wait(lambda: accounted(work, old, "RUNNING"), f"{old} running in the accounting")
    follower = Follower.of(old)
    wait(lambda: follower.lines, "a line of the log")
    start(work, fresh)
    print(f"\nslurmctld away for {seconds:.0f} s ({how})", flush=True)
    with away(work, how, seconds) as begun:
        commands = (("status", old), ("status", fresh), ("list",))
        askers = [Asker((*command, "--json"), begun + seconds) for command in commands]
        threads = [threading.Thread(target=asker.run) for asker in askers]
        threads.append(threading.Thread(target=submitted, args=(work, new, begun + seconds)))
        time.sleep(FIRST_ASKED_S)
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    for asker in askers:
        asker.report(begun)
    follower.report(begun, begun + seconds)
    after(work, (old, fresh, new))
    wait(lambda: follower.process.poll() is not None, "the end of logs --follow")
    print(f"logs --follow: ended with {follower.process.returncode}")
    work.cluster.call("scancel", "--me")


def start(work: Place, run: str) -> None:
    """Start a long training and wait until it runs."""
    recipe = standin_recipe(work.folder, nodes=1, STEPS=100000, STEP_S=STEP_S)
    insist("submit", recipe, "--on", "slurm", "--name", run, "--set", "slurm.mem=1000")
    wait_state(run, "RUNNING")


def accounted(work: Place, run: str, *states: str) -> int:
    """How many jobs of a name the accounting knows, in these states or any."""
    lines = work.cluster.call("sacct", "-X", "--noheader", "--parsable2", f"--name={run}", "--format=State").split()
    return sum(line in states for line in lines) if states else len(lines)


def after(work: Place, runs: tuple[str, ...]) -> None:
    """What is there when the controller is back, and after every run was cancelled."""
    for run in runs:
        seen = status(run)
        print(f"status {run} afterwards: {seen.get('state')}, attempts {seen.get('attempts')}")
    codes = [str(call("cancel", run).code) for run in runs]
    print(f"cancel of all afterwards: exit codes {', '.join(codes)}; {left(work)} jobs left")


def left(work: Place) -> int:
    """Jobs in the queue."""
    return len(work.cluster.call("squeue", "--noheader", "--format=%i").split())


def main() -> None:
    """Each kind of outage in turn."""
    asked = parser(__doc__, system=False)
    asked.add_argument("seconds", nargs="?", type=float, default=60.0)
    asked.add_argument("--how", default="stop,freeze")
    options = asked.parse_args()
    with place() as work:
        for how in options.how.split(","):
            outage(work, how, options.seconds)


if __name__ == "__main__":
    main()
