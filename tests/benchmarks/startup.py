"""How long the command line takes to start: ``python -m tests.benchmarks.startup``.

Prints medians of ten runs after one warm-up, in turn with a two-command Typer program, and the modules imported.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER = """\
import typer
app = typer.Typer()
@app.command()
def one(name: str, count: int = 1) -> None: ...
@app.command()
def two(name: str, count: int = 1) -> None: ...
app()
"""
RUNS = 10


def seconds(command: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def modules(arguments: list[str]) -> list[str]:
    """Top-level modules that a command imports, the standard library left out."""
    code = (
        "import sys, atexit\n"
        "def show():\n"
        "    loaded = {m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)\n"
        "    print(*sorted(loaded), file=sys.stderr)\n"
        f"atexit.register(show)\nsys.argv = {['llavajob', *arguments]!r}\nfrom launcher.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.strip().splitlines()[-1].split()


def main() -> None:
    """Print the table."""
    llavajob = str(Path(sys.executable).with_name("llavajob"))
    dry_run = ["submit", "finetune", "--dry-run", "--nodes", "2"]
    with tempfile.TemporaryDirectory() as folder:
        peer = Path(folder, "peer.py")
        peer.write_text(PEER)
        commands = {
            "two-command Typer program --help": [sys.executable, str(peer), "--help"],
            "llavajob --help": [llavajob, "--help"],
            "llavajob submit finetune --dry-run --nodes 2": [
                llavajob,
                "submit",
                "finetune",
                "--dry-run",
                "--nodes",
                "2",
            ],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for run in range(RUNS + 1):
            for name, command in commands.items():
                took = seconds(command)
                times[name] += [took] if run else []
    base = statistics.median(times["two-command Typer program --help"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{median:6.3f} s  {median - base:+.3f} s  {name}")
    print("modules of --help:", *modules(["--help"]))
    print("modules of the dry run:", *modules(dry_run))


if __name__ == "__main__":
    main()
