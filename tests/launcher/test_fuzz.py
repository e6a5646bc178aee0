"""Thousands of odd recipes, profiles and options: each is refused in words or rendered, at once and well quoted.

A minute of cases in the check; LLAVAJOB_FUZZ_CASES=20000 (and LLAVAJOB_FUZZ_SEED) for a night.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.launcher.fuzz import STUB_PYTHON, Case, Result, make_case, run_all

CASES = int(os.environ.get("LLAVAJOB_FUZZ_CASES", "1500"))
SEED = int(os.environ.get("LLAVAJOB_FUZZ_SEED", "1"))
Results = list[tuple[Case, Result]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def results(place: Path) -> Results:
    return list(run_all(CASES, SEED, place))


def _rendered(results: Results, backend: str) -> list[tuple[Case, str]]:
    return [(case, result.rendered) for case, result in results if result.code == 0 and result.backend == backend]


@pytest.mark.timeout(20 * 3600)
def test_every_case_ends_in_time_and_in_words(results: Results) -> None:
    assert len(results) == CASES
    wrong = [(case, result.code, result.message) for case, result in results if result.code not in (0, 2)]
    assert not wrong, f"{len(wrong)} of {CASES}, the first: {wrong[0]}"
    silent = [case for case, result in results if result.code == 2 and not result.message.strip()]
    assert not silent, silent[0]


def test_the_cases_reach_every_backend_and_every_kind(results: Results) -> None:
    """A fuzzer whose cases are all refused at the first line finds nothing."""
    for backend in ("local", "slurm", "kubernetes"):
        assert len(_rendered(results, backend)) > CASES // 50, backend
    assert 0.3 < sum(result.code == 2 for _, result in results) / CASES < 0.9


def test_equal_seeds_give_equal_cases() -> None:
    assert [make_case(1, number) for number in range(20)] == [make_case(1, number) for number in range(20)]
    assert make_case(1, 3) != make_case(2, 3)


def test_plans_of_local_runs_are_yaml_that_keeps_every_value(results: Results) -> None:
    checked = 0
    for case, text in _rendered(results, "local"):
        document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        assert document["backend"] == "local"
        given = _environment(case)
        for step in document["steps"]:
            for name, value in given.items():
                assert step["environment"][name] == value, (case, name)
                checked += 1
    assert checked > CASES // 100


def test_objects_of_kubernetes_are_yaml_of_the_right_kinds(results: Results) -> None:
    checked = 0
    for case, text in _rendered(results, "kubernetes"):
        documents = [value for value in yaml.load_all(text, Loader=yaml.CSafeLoader) if value is not None]
        kinds = {document["kind"] for document in documents}
        assert kinds <= {"ConfigMap", "Job", "PyTorchJob"} and "ConfigMap" in kinds, (case, kinds)
        json.dumps(documents)
        checked += 1
    assert checked


def test_scripts_of_slurm_execute_nothing_that_a_value_says(results: Results, place: Path) -> None:
    stubs = _stubs(place)
    checked, wrong = 0, []
    for case, text in _rendered(results, "slurm"):
        if "setup" in case.profiles or any("setup" in given for given in case.sets):
            continue  # lines of shell are what setup is for
        for script in _scripts(text):
            checked += 1
            trouble = _trouble(script, place / f"{checked}", stubs)
            if trouble:
                wrong.append((trouble, case))
    assert not wrong, f"{len(wrong)} of {checked} scripts, the first: {wrong[0]}"
    assert checked > CASES // 20


def _stubs(place: Path) -> Path:
    """Commands that a batch script calls: they do nothing, and one turn of the loop of attempts is the last."""
    folder = place / "stubs"
    python = place / STUB_PYTHON
    lines = {
        folder / "srun": "exit 0",
        folder / "module": "exit 0",
        python: 'case "$3" in begin) echo ":";; settle) echo "exit 0";; esac',
    }
    for path, line in lines.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    return folder


def _scripts(text: str) -> list[str]:
    """A rendered text's scripts: a pipeline's stand one after the other, each below a line that counts them."""
    parts = re.split(r"^## [0-9]+ of [0-9]+: .*\n", text, flags=re.MULTILINE)
    return [part for part in parts if part.strip()]


def _trouble(script: str, folder: Path, stubs: Path) -> str:
    """Say what a script does that it must not, when bash reads it and when it runs in an empty folder."""
    folder.mkdir()
    read = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=60)
    if read.returncode or read.stderr:
        return f"bash -n: {read.stderr}"
    environment = {"PATH": f"{stubs}:/usr/bin:/bin", "HOME": str(folder), "SLURM_JOB_ID": "1"}
    try:
        subprocess.run(["bash"], input=script, cwd=folder, env=environment, capture_output=True, text=True, timeout=5)
    except subprocess.TimeoutExpired:
        return "it does not end within 5 s"
    left = [path.name for path in folder.rglob("*")]
    return f"it made {left}" if left else ""


def _environment(case: Case) -> dict[str, str]:
    """The recipe's own variables that are plain text without references, where no option touches them."""
    values = yaml.safe_load(case.recipe)
    listed = values.get("environment") if isinstance(values, dict) and values.get("kind") != "pipeline" else None
    if case.sets or case.profiles or not isinstance(listed, dict):
        return {}
    return {name: value for name, value in listed.items() if isinstance(value, str) and "$" not in value}
