"""How long until a job runs, against sbatch itself: ``python -m tests.benchmarks.slurm_start [PAIRS] [--system DIR]``.

Each pair is a plain ``sbatch`` of the very text that ``llavajob submit --dry-run`` prints, and a ``llavajob submit``,
in turn first and second. The clock starts with the command and stops when squeue shows the job running, and when the
command ends. Pauses of random length keep the pairs from falling in step with Slurm's own intervals.
"""

from __future__ import annotations

import random
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.slurm_place import LLAVAJOB, Place, insist, parser, place, spread, standin_recipe, wait

# The text alone has no run folder behind it, so its first step ends the job at once: what ended has been running.
HAS_RUN = ("RUNNING", "COMPLETING", "COMPLETED", "FAILED", "CANCELLED")
POLL_S = 0.01
MOST_S = 60.0


@dataclass
class Times:
    """Seconds of one way to submit, pair by pair."""

    ended: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)


def job_state(work: Place, name: str) -> str:
    """Slurm's state of the only job of this name, or nothing."""
    return work.cluster.call("squeue", "--noheader", "--me", "--states=all", f"--name={name}", "--format=%T").strip()


def measure(work: Place, command: list[str], name: str, times: Times) -> None:
    """Run a command that submits, and note when it ended and when its job ran."""
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        ended = running = None
        while ended is None or running is None:
            if ended is None and process.poll() is not None:
                ended = time.monotonic() - begun
                if process.returncode:
                    assert process.stderr is not None
                    raise SystemExit(f"{command} ended with {process.returncode}: {process.stderr.read().decode()}")
            if running is None and job_state(work, name) in HAS_RUN:
                running = time.monotonic() - begun
            if time.monotonic() - begun > MOST_S:
                raise SystemExit(f"{name} does not run after {MOST_S:.0f} s: {job_state(work, name) or 'no job'}")
            time.sleep(POLL_S)
    times.ended.append(ended)
    times.running.append(running)


def clear(work: Place, name: str, rng: random.Random) -> None:
    """Cancel the job, wait until it has left its nodes, and a little more."""
    work.cluster.call("scancel", "--me", f"--name={name}")
    left = ("squeue", "--noheader", "--me", f"--name={name}", "--format=%i")
    wait(lambda: not work.cluster.call(*left).strip(), f"{name} gone")
    time.sleep(rng.uniform(0.5, 2.5))


def plain(work: Place, recipe: str, name: str) -> list[str]:
    """The command that sends what a dry run prints; the folder that the text names is made for Slurm's log."""
    text = insist("submit", recipe, "--on", "slurm", "--name", name, "--dry-run").out
    # Without it Slurm could not write its log, and the job would fail. A folder without a record is no run.
    Path(text.split("#SBATCH --output=")[1].splitlines()[0]).parent.mkdir(parents=True)
    script = work.folder / f"{name}.sh"
    script.write_text(text)
    return ["sbatch", "--parsable", str(script)]


def pair(work: Place, recipe: str, number: int, ways: dict[str, Times], rng: random.Random) -> None:
    """One of each, the plain one first in every second pair."""
    text_name, run_name = f"text-{number}", f"run-{number}"
    commands = {
        "sbatch": (plain(work, recipe, text_name), text_name),
        "llavajob submit": ([LLAVAJOB, "submit", recipe, "--on", "slurm", "--name", run_name], run_name),
    }
    for way in sorted(commands, reverse=bool(number % 2)):
        command, name = commands[way]
        measure(work, command, name, ways[way])
        clear(work, name, rng)


def report(ways: dict[str, Times]) -> None:
    """Print both ways and the differences of the pairs."""
    base, ours = ways["sbatch"], ways["llavajob submit"]
    for title, one, other in (("end of the command", base.ended, ours.ended), ("RUNNING", base.running, ours.running)):
        differences = [b - a for a, b in zip(one, other, strict=True)]
        print(f"from the command's start to {title}:")
        print(f"  plain sbatch     {spread(one)}")
        print(f"  llavajob submit  {spread(other)}")
        print(f"  pair by pair     {spread(differences, '+')}")
        print(f"  between medians  {statistics.median(other) - statistics.median(one):+.3f} s")


def main() -> None:
    """Measure the pairs after one that does not count."""
    asked = parser(__doc__)
    asked.add_argument("pairs", nargs="?", type=int, default=10)
    options = asked.parse_args()
    if shutil.which("sbatch") is None and options.system:
        raise SystemExit("there is no sbatch in PATH")
    rng = random.Random(0)
    with place(options.system) as work:
        recipe = standin_recipe(work.folder, STEPS=100000)
        ways = {"sbatch": Times(), "llavajob submit": Times()}
        pair(work, recipe, 0, {way: Times() for way in ways}, rng)
        for number in range(1, options.pairs + 1):
            pair(work, recipe, number, ways, rng)
        print(f"{options.pairs} pairs, 2 nodes")
        report(ways)


if __name__ == "__main__":
    main()
