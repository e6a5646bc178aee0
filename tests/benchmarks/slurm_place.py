"""What the figures on Slurm share: a cluster, a folder and a configuration of their own, and timed calls of llavajob.

A bed is started unless a script is told ``--system DIR``: then the Slurm that SLURM_CONF and PATH lead to is used, and
DIR has to be a folder that its nodes see.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.slurm.bed import Bed, Cluster, missing

LLAVAJOB = str(Path(sys.executable).with_name("llavajob"))
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
STANDIN = Path(__file__).parents[1] / "launcher/standin"
COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "sinfo")


@dataclass
class Done:
    """One call of llavajob."""

    code: int
    out: str
    err: str
    took: float
    cpu: float
    """Seconds of processor time, those of the Slurm commands that it ran included."""


@dataclass
class Place:
    """Where a script works."""

    cluster: Cluster
    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def bed(self) -> Bed:
        assert isinstance(self.cluster, Bed)
        return self.cluster


def parser(doc: str | None, system: bool = True) -> argparse.ArgumentParser:
    """A parser with the choice of the cluster."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if system:
        made.add_argument("--system", metavar="DIR", type=Path, help="use the Slurm of this machine, and DIR")
    return made


@contextmanager
def place(system: Path | None = None) -> Iterator[Place]:
    """A cluster and an empty folder, to which the environment leads; a bed is ended and every folder removed."""
    if system is not None:
        with tempfile.TemporaryDirectory(dir=system) as name, environment(Path(name)):
            yield Place(Cluster({}), Path(name))
        return
    reason = missing()
    if reason:
        raise SystemExit(reason)
    with Bed() as bed, tempfile.TemporaryDirectory() as name, environment(Path(name), **bed.environment):
        try:
            yield Place(bed, Path(name))
        finally:
            bed.mend()
            bed.cancel_jobs()
            bed.kill_job_processes()


@contextmanager
def environment(folder: Path, **more: str) -> Iterator[None]:
    before, folder_before = dict(os.environ), Path.cwd()
    own = {"LLAVAJOB_RUNS": str(folder / "runs"), "COLUMNS": "200", **more}
    if more:
        # A system's own profiles stay in force, a bed has none.
        own["HOME"] = str(folder / "home")
        (folder / "home").mkdir()
    os.environ.update(own)
    # Jobs start where they were sent from, and Python looks there first: not beside the packages of the repository.
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(folder_before)
        os.environ.clear()
        os.environ.update(before)


def call(*arguments: str, **environment: str) -> Done:
    """Run llavajob to its end."""
    used, begun = _children(), time.monotonic()
    done = subprocess.run(
        [LLAVAJOB, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - begun, _children() - used)


def insist(*arguments: str, **environment: str) -> Done:
    """Run llavajob; that it succeeds is no part of what is measured."""
    done = call(*arguments, **environment)
    if done.code:
        raise SystemExit(f"llavajob {shlex.join(arguments)} ended with {done.code}:\n{done.out}{done.err}")
    return done


def _children() -> float:
    """Processor time of the children that ended; only right where they end one after the other."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def status(run: str) -> dict[str, Any]:
    """The run's status; empty where there was none to be had."""
    done = call("status", run, "--json")
    try:
        return dict(json.loads(done.out))
    except ValueError:
        return {}


def wait(look: Callable[[], Any], what: str, most_s: float = 120.0, pause_s: float = 0.1) -> Any:
    """Wait until something is true, and return it; give up loudly."""
    deadline = time.monotonic() + most_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not seen in {most_s:.0f} s: {what}")
        time.sleep(pause_s)
    return found


def wait_state(run: str, *states: str, most_s: float = 120.0) -> dict[str, Any]:
    """Wait until a run is in one of the states."""

    def look() -> dict[str, Any] | None:
        seen = status(run)
        return seen if seen.get("state") in states else None

    return dict(wait(look, f"{run} {' or '.join(states)}", most_s, 0.2))


def standin_recipe(folder: Path, nodes: int = 2, **environment: object) -> str:
    """Write a training that computes nothing, and return the recipe's path."""
    (folder / "records.json").write_text("[]")
    here = str(folder)
    values = {
        "kind": "train",
        "resources": {"nodes": nodes},
        "retries": {"grace_s": 5},
        "environment": {"PYTHONPATH": str(STANDIN), **{f"STANDIN_{k}": str(v) for k, v in environment.items()}},
        "model": {"language": {"path": here}, "vision": {"path": here}},
        "data": {"records": f"{here}/records.json", "images": here},
    }
    path = folder / "standin.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


@contextmanager
def counting(folder: Path) -> Iterator[Callable[[], Counter[str]]]:
    """Count which Slurm commands run from here on; yield what was counted so far."""
    before, wrappers, log = os.environ["PATH"], folder / "counted", folder / "commands"
    wrappers.mkdir()
    log.touch()
    for name in COMMANDS:
        real = shutil.which(name)
        wrapper = wrappers / name
        wrapper.write_text(f'#!/bin/sh\necho {name} >> {shlex.quote(str(log))}\nexec {real} "$@"\n')
        wrapper.chmod(0o755)
    os.environ["PATH"] = f"{wrappers}:{before}"
    try:
        yield lambda: Counter(log.read_text().split())
    finally:
        os.environ["PATH"] = before
        shutil.rmtree(wrappers)
        log.unlink()


def in_words(counted: Counter[str]) -> str:
    """Numbers by name, in one line."""
    return ", ".join(f"{number} {name}" for name, number in sorted(counted.items())) or "none"


def spread(values: Sequence[float], sign: str = "") -> str:
    """Median, quartiles and ends of some seconds; ``+`` as sign for differences."""
    low, _, high = statistics.quantiles(values, n=4)
    numbers = (statistics.median(values), low, high, min(values), max(values))
    return "median {} s, quartiles {} to {} s, ends {} to {} s".format(*(f"{number:{sign}.3f}" for number in numbers))
