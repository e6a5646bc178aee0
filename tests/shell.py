"""Running the real command line, with a runtime that needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

STANDIN = Path(__file__).parent / "launcher/standin"


@dataclass
class Result:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Calls llavajob as a person would; each call is a process of its own."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.command = command
        self.folder = folder
        self.runs = Path(os.environ["LLAVAJOB_RUNS"])

    def __call__(self, *arguments: str, check: int | None = 0, **environment: str) -> Result:
        done = subprocess.run(
            [*self.command, *arguments], capture_output=True, text=True, cwd=self.folder,
            env={**os.environ, **environment}, timeout=120,
        )  # fmt: skip
        result = Result(done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in result.err, result.err
        if check is not None:
            assert result.code == check, (result.out, result.err)
        return result

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=self.folder, env={**os.environ, **environment},
        )  # fmt: skip

    def status(self, run: str) -> Any:
        return self("status", run, "--json").json

    def look(self, run: str) -> Any:
        """The status, or nothing known while the run is not there yet."""
        result = self("status", run, "--json", check=None)
        return result.json if result.code == 0 else {"state": None, "step": None}

    def wait(self, run: str, *states: str, most_s: float = 60.0) -> Any:
        wanted = states or ("SUCCEEDED", "FAILED", "CANCELLED")
        return self.until(lambda: (s := self.look(run))["state"] in wanted and s, f"{run} in {wanted}", most_s)

    def wait_step(self, run: str, step: int) -> Any:
        return self.until(lambda: ((s := self.look(run))["step"] or 0) >= step and s, f"step {step} of {run}")

    def until(self, look: Callable[[], Any], what: str, most_s: float = 60.0) -> Any:
        deadline = time.monotonic() + most_s
        while time.monotonic() < deadline:
            found = look()
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"never saw {what}")

    def left(self, run: str) -> list[str]:
        """Command lines of the processes that carry a run's mark."""
        mark = str(self.runs / run)
        return [" ".join(p.cmdline()) for p in psutil.process_iter() if _mark(p) == mark]

    def agents(self, run: str) -> list[int]:
        """Process ids of a run's agents."""
        mark = str(self.runs / run)
        return [p.pid for p in psutil.process_iter() if _mark(p) == mark and "llava.agent" in p.cmdline()]

    def supervisor(self, run: str) -> int:
        return int(json.loads((self.runs / run / "state.json").read_text())["pid"])


def _mark(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get("LLAVAJOB_RUN")
    except (psutil.Error, OSError):
        return None


@pytest.fixture
def shell(command: list[str], own_place: Path) -> Iterator[Shell]:
    folder = own_place / "a folder with 'quotes' and spaces"
    folder.mkdir()
    shell = Shell(command, folder)
    yield shell
    for process in psutil.process_iter():
        if str(_mark(process)).startswith(str(shell.runs)):
            process.kill()


@pytest.fixture
def recipe(shell: Shell) -> Callable[..., str]:
    """Write a recipe file for the stand-in runtime and return its name."""

    def write(name: str = "train", **changes: Any) -> str:
        values: dict[str, Any] = {
            "kind": "train",
            "resources": {"nodes": 2},
            "retries": {"grace_s": 5},
            "environment": {"PYTHONPATH": str(STANDIN)},
            "model": {"language": {"path": "."}, "vision": {"path": "."}},
            "data": {"records": "records.json", "images": "."},
        }
        values.update(changes)
        (shell.folder / "records.json").write_text("[]")
        (shell.folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return f"{name}.yaml"

    return write


@pytest.fixture
def pipeline(recipe: Callable[..., str]) -> Callable[..., str]:
    """Write a three-stage pipeline for the stand-in runtime."""

    def write(**changes: Any) -> str:
        parts = {"language": {"path": "."}, "vision": {"path": "."}}
        learn = {"kind": "train", "model": parts, "data": {"records": "records.json", "images": "."}}
        merge = {"source": "${stages.learn.dir}/model", "output": "${stage.dir}/hf"}
        score = {"model": "${stages.merge.dir}/hf", "data": "records.json"}
        stages = {
            "learn": learn,
            "merge": {"kind": "convert", "convert": merge},
            "score": {"kind": "eval", "eval": score},
        }
        recipe("unused")
        fields = {"kind": "pipeline", "stages": stages, "model": None, "data": None, "retries": None, **changes}
        name = recipe("pipe", **fields)
        path = Path(os.environ["HOME"]).parent
        file = next(path.glob("a folder*/pipe.yaml"))
        values = {k: v for k, v in yaml.safe_load(file.read_text()).items() if v is not None}
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        return name

    return write
