"""The wall between launcher and runtime, and what they must agree on."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import launcher.run_folder
import llava.config
import llava.errors
import llava.run_folder
from launcher.schema import runtime_schema

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "peft", "deepspeed", "bitsandbytes", "numpy", "kubernetes", "submitit", "rich"}


def _imports(house: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in (ROOT / house).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found.setdefault(str(path), set()).update(name.split(".")[0] for name in names)
    return found


@pytest.mark.parametrize(
    ("house", "banned"),
    [
        ("launcher", {"llava", "torch", "transformers", "peft", "deepspeed", "bitsandbytes"}),
        ("llava", {"launcher", "submitit", "kubernetes"}),
    ],
)
def test_neither_house_imports_the_other(house: str, banned: set[str]) -> None:
    guilty = {path: names & banned for path, names in _imports(house).items() if names & banned}
    assert guilty == {}


def _loaded_by(code: str) -> set[str]:
    script = f"import sys\nsys.argv = ['llavajob']\n{code}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_starting_up_loads_nothing_heavy() -> None:
    assert _loaded_by("import launcher.cli") & (HEAVY | {"yaml", "psutil", "llava"}) == set()
    dry_run = "from launcher.runs import prepare; prepare('finetune', None, 'x', [])"
    assert _loaded_by(dry_run) & (HEAVY | {"llava"}) == set()
    assert _loaded_by("import llava.cli") & (HEAVY - {"rich"} | {"launcher"}) == set()


def test_both_run_folders_name_the_same_paths() -> None:
    here, there = launcher.run_folder.RunFolder(Path("/r")), llava.run_folder.RunFolder(Path("/r"))
    for name in ("config", "metrics", "events", "checkpoints", "model"):
        assert getattr(here, name) == getattr(there, name)
    assert here.checkpoint(5) == there.checkpoint(5)
    assert here.benchmark("mmbench") == there.benchmark("mmbench")
    assert here.node_log(1, 2) == there.node_log(1, 2)
    assert here.rank_log(1, 2) == there.rank_log(1, 2)
    assert here.rank_error(1, 2) == there.rank_error(1, 2)


def test_both_houses_use_the_same_names_and_codes() -> None:
    for name in ("ENV_RUN", "ENV_ATTEMPT", "ENV_ATTEMPT_DIR", "ENV_NODE"):
        assert getattr(launcher.run_folder, name) == getattr(llava.run_folder, name)
    for name in ("EXIT_BAD_REQUEST", "EXIT_FINAL", "EXIT_INTERRUPTED"):
        assert getattr(launcher.run_folder, name) == getattr(llava.errors, name)


def test_the_launchers_schema_is_the_runtimes() -> None:
    """When this fails: llava schema > launcher/runtime_schema.json."""
    assert json.dumps(runtime_schema()) == json.dumps(llava.config.schema())
