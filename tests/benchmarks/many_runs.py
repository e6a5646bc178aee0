"""Many runs, many ranks: ``python -m tests.benchmarks.many_runs [--runs 1000] [--ranks 64] [--system DIR]``.

``llavajob list`` of many recorded runs on Slurm: all but ten are copies of one that ended, ten wait in the queue; time,
processor time, and which Slurm commands it ran, against a list of those ten alone. ``llavajob logs --follow`` of the
files of many ranks that are being written, once with lines that differ from rank to rank and once with equal ones,
which are folded: processor time of the follower, the Slurm commands that it ran, and how late its lines are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from launcher.run_folder import RunFolder
from tests.benchmarks.slurm_place import (
    LLAVAJOB,
    Done,
    Place,
    call,
    counting,
    in_words,
    insist,
    parser,
    place,
    spread,
    standin_recipe,
    wait,
    wait_state,
)

WAITING = 10
REPEATS = 5
HELD = ("--set", "slurm.extra.hold=true")
ENDED_STATE, TEXTS = "SUCCEEDED", (".json", ".jsonl", ".yaml", ".sh", ".log", ".out")
Count = Callable[[], Counter[str]]


def record_runs(work: Place, many: int) -> None:
    """Fill the runs' folder: one run that succeeds, copies of it, and some that wait."""
    recipe = standin_recipe(work.folder, STEPS=20, STEP_S=0.01)
    insist("submit", recipe, "--on", "slurm", "--name", "ended-0000")
    wait_state("ended-0000", ENDED_STATE)
    for number in range(WAITING):
        insist("submit", recipe, "--on", "slurm", "--name", f"waiting-{number}", *HELD)
    for number in range(1, many - WAITING):
        copy_run(work.runs / "ended-0000", f"ended-{number:04d}")


def copy_run(run: Path, name: str) -> None:
    """Copy an ended run under another name, which stands in its texts too."""
    other = run.with_name(name)
    shutil.copytree(run, other, symlinks=True)
    for path in other.rglob("*"):
        if path.suffix in TEXTS and path.is_file() and not path.is_symlink():
            path.write_text(path.read_text().replace(run.name, name))


def list_runs(count: Count, runs: int) -> list[Done]:
    """List all runs some times, check that all are there, and print what it took."""
    before, calls = count(), []
    for _ in range(REPEATS + 1):
        calls.append(call("list", "--json"))
    states = Counter(str(run["state"]) for run in json.loads(calls[-1].out))
    calls = calls[1:]
    print(f"list of {runs} runs ({in_words(states)}):")
    print(f"  time {spread([done.took for done in calls])}")
    print(f"  processor time {spread([done.cpu for done in calls])}")
    ran = count() - before
    print(f"  Slurm commands of {REPEATS + 1} calls: {in_words(ran)}")
    return calls


def lists(work: Place, count: Count, many: int) -> None:
    """Compare the list of all with the list of those that wait."""
    record_runs(work, many)
    whole = list_runs(count, many)
    table = call("list")
    print(f"  as a table: {table.took:.3f} s, {len(table.out.splitlines()) - 1} lines")
    aside = work.folder / "aside"
    aside.mkdir()
    for run in work.runs.glob("ended-*"):
        run.rename(aside / run.name)
    few = list_runs(count, WAITING)
    more = statistics.median(done.took for done in whole) - statistics.median(done.took for done in few)
    print(f"  each ended run costs {1000 * more / (many - WAITING):.2f} ms")
    for number in range(WAITING):
        insist("cancel", f"waiting-{number}")


def write_ranks(run: Path, ranks: int, rate: float, seconds: float, equal: bool) -> int:
    """Append lines to the files of all ranks, so many a second each; return how many."""
    folder = RunFolder(run)
    files = [folder.rank_log(0, rank).open("a", buffering=1) for rank in range(ranks)]
    begun, written = time.time(), 0
    for turn in range(int(rate * seconds)):
        time.sleep(max(0.0, begun + turn / rate - time.time()))
        for rank, file in enumerate(files):
            now = time.time()
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
            loss = 1.0 if equal else 1.0 + rank / 1000
            file.write(f"{stamp} INFO turn {turn} loss {loss:.3f}\n")
            written += 1
    for file in files:
        file.close()
    return written


def follow(work: Place, count: Count, ranks: int, options: tuple[float, float], equal: bool) -> None:
    """Follow a run whose ranks' files are written meanwhile, and print what it took."""
    rate, seconds = options
    name = f"{'equal' if equal else 'different'}-{ranks}"
    insist("submit", standin_recipe(work.folder, nodes=1, STEP_S=1000), "--on", "slurm", "--name", name)
    wait_state(name, "RUNNING")
    pipe = subprocess.PIPE
    process = subprocess.Popen([LLAVAJOB, "logs", name, "--follow"], stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    lines: list[tuple[float, str]] = []
    reader = threading.Thread(target=lambda: lines.extend((time.time(), line) for line in process.stdout or ()))
    reader.start()
    wait(lambda: lines, "a line of the log")
    before, used, begun = count(), used_by(process.pid), time.time()
    written = write_ranks(work.runs / name, ranks, rate, seconds, equal)
    last = f"turn {int(rate * seconds) - 1} "
    wait(lambda: any(last in line for _, line in lines[-ranks:]), "the last line", 60, 0.05)
    time.sleep(1.0)
    took, spent, ran = time.time() - begun, used_by(process.pid) - used, count() - before
    process.send_signal(signal.SIGINT)
    process.wait()
    reader.join()
    report_follow(lines, written, equal)
    print(f"  processor time {spent:.2f} s in {took:.1f} s: {100 * spent / took:.0f} % of one processor")
    print(f"  Slurm commands: {in_words(ran)}")
    insist("cancel", name)


def report_follow(lines: list[tuple[float, str]], written: int, equal: bool) -> None:
    """Print what came of the lines that were written, and how late."""
    shown = [(moment, line) for moment, line in lines if " turn " in line]
    late = [moment - written_at(line) for moment, line in shown]
    many = sum(members(line) for _, line in shown)
    print(f"logs --follow, lines that are {'equal' if equal else 'different'} on all ranks:")
    print(f"  {written} lines written, {many} shown in {len(shown)} lines")
    print(f"  later than written: {spread(late)}; the last line {late[-1]:.3f} s")


def written_at(line: str) -> float:
    """When a shown line was written."""
    found = re.search(r"\d{4}-\d\d-\d\dT[\d:.]+", line)
    assert found is not None, line
    return datetime.fromisoformat(f"{found[0]}+00:00").timestamp()


def members(line: str) -> int:
    """How many ranks a folded line stands for: [0-3,5]."""
    label = line[1 : line.index("]")]
    parts = re.findall(r"(\d+)(?:-(\d+))?", label)
    return sum(int(last or first) - int(first) + 1 for first, last in parts)


def used_by(pid: int) -> float:
    """Processor time of a process and of its children that ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Lists first, then followers."""
    asked = parser(__doc__)
    asked.add_argument("--runs", type=int, default=1000)
    asked.add_argument("--ranks", type=int, default=64)
    asked.add_argument("--rate", type=float, default=5.0, help="lines of each rank in a second")
    asked.add_argument("--seconds", type=float, default=20.0, help="how long the ranks write")
    options = asked.parse_args()
    with place(options.system) as work, counting(work.folder) as count:
        lists(work, count, options.runs)
        for equal in (False, True):
            follow(work, count, options.ranks, (options.rate, options.seconds), equal)


if __name__ == "__main__":
    main()
