"""Inputs that are small and ask for much: each is refused, or planned, within seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.yaml_reader import DEEPEST, MOST_VALUES, Reader
from tests.launcher.wrong_input import of_text, outcome

EVAL = "kind: eval\neval: {model: ., data: records.json}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _aliases(levels: int, each: int) -> str:
    lines = ["  a0: &a0 [x, x]"]
    lines += [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * each)}]" for i in range(1, levels)]
    return "needs:\n" + "\n".join(lines) + "\n"


def _references(levels: int, each: int) -> str:
    lines = ["  p0: xxxxxxxxxx"]
    lines += [f'  p{i}: "{("${paths.p" + str(i - 1) + "}") * each}"' for i in range(1, levels)]
    return "paths:\n" + "\n".join(lines) + "\n"


def _list_references(levels: int, each: int) -> str:
    lines = ["  a0: [x]"]
    for i in range(1, levels):
        one = '"${needs.a' + str(i - 1) + '}"'
        lines.append(f"  a{i}: [{', '.join([one] * each)}]")
    return "needs:\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (_aliases(10, 9), f"t.yaml:5: more than {MOST_VALUES:,} values"),
        ("needs: &a {b: *a}\n", "an alias is inside what it names"),
        (_references(11, 10), "references write out more than 1,000,000 characters"),
        (_list_references(11, 10), "references write out more than 1,000,000 characters"),
        ("paths:\n" + "".join(f'  p{i}: "${{paths.p{i + 1}}}"\n' for i in range(1500)), "in a chain"),
        ("needs: " + "[" * 100_000, "t.yaml:4: not valid YAML"),
        ("needs: " + "[" * 60 + "]" * 60, f"t.yaml:4: more than {DEEPEST} mappings and lists"),
        ("needs:\n" + "".join(" " * (i + 1) + "a:\n" for i in range(300)), f"more than {DEEPEST} mappings and lists"),
        ("".join(f"k{i}: x\n" for i in range(15_000)), "t.yaml:4: unknown key 'k0'"),
        ("paths:\n" + "".join(f'  k{i}: "${{no{i}}}"\n' for i in range(9_000)), "${no0} refers to nothing"),
        ("#" * (5 << 20), "t.yaml: is larger than 4 MiB"),
        ("description: " + "x, " * 300_000 + "\nseed: a\n", "t.yaml:5: seed is"),
        ("paths: {" + "x" * 900 + ": y}\n", "t.yaml:4: a key of 900 characters"),
    ],
)
def test_small_files_that_grow_are_refused_with_their_line(extra: str, said: str) -> None:
    result = of_text(extra)
    assert result.code == 2
    assert said in result.message
    assert len(result.message.splitlines()) <= 60, "thousands of mistakes are not all listed"


@pytest.mark.parametrize(
    ("sets", "nodes", "said"),
    [
        ((), 10**9, "--nodes: resources.nodes is 1000000000; a whole number at least 1 and at most 100000"),
        ((), 10**30, "--nodes: resources.nodes is"),
        (("resources.processes_per_node=1000000",), None, "at most 4096 is needed"),
        (("train.global_batch=1000000000000",), None, "at most 1,000,000,000 is needed"),
        (("train.device_batch=1000000000000",), None, "at most 1,000,000,000 is needed"),
        (("train.global_batch=999999937",), 3, "cannot be shared by 3 ranks; ranks may be 1, or change the batch"),
        (("retries.grace_s=99999999999",), None, "at most 604800 is needed"),
        (("retries.without_progress=99999999",), None, "at most 10000 is needed"),
        (("seed=0x" + "f" * 90_000,), None, "--set seed: seed is"),
        (("train.betas=[&a [1, 2, 3], *a, *a]",), None, "--set train.betas: train.betas is"),
        ((".".join(["abc"] * 20_000) + "=1",), None, "no key is that long"),
    ],
)
def test_large_numbers_are_refused_with_the_most_that_may_be(
    sets: tuple[str, ...], nodes: int | None, said: str
) -> None:
    result = of_text("", *sets, nodes=nodes)
    assert result.code == 2 and said in result.message


def test_the_largest_batches_are_planned_at_once() -> None:
    result = of_text("", "train.global_batch=1000000000", "train.device_batch=1000000000", nodes=1000)
    assert result.prepared is not None
    assert result.prepared.stages[0].tree.values["train"]["device_batch"] == 1_000_000


def test_a_device_batch_is_lowered_to_the_largest_that_fits() -> None:
    result = of_text("", "train.global_batch=96", "train.device_batch=20", nodes=3)
    assert result.prepared is not None
    assert result.prepared.stages[0].tree.values["train"]["device_batch"] == 16


def test_an_evaluation_of_more_shards_than_can_be_planned_is_refused(here: Path) -> None:
    (here / "e.yaml").write_text(EVAL)
    assert outcome("e.yaml", nodes=10**9).code == 2
    told = outcome("e.yaml", "resources.processes_per_node=8", nodes=100_000)
    assert told.code == 2 and "800,000 processes would be as many shards; 100,000 are the most" in told.message
    assert outcome("e.yaml", "eval.shards=100001").code == 2
    planned = outcome("e.yaml", nodes=20_000).prepared
    assert planned is not None and planned.plan.steps[0].nodes == 20_000


def test_many_good_values_are_no_problem() -> None:
    paths = "paths:\n  z: x\n" + "".join(f'  k{i}: "${{paths.z}}/{i}"\n' for i in range(9_000))
    result = of_text(paths)
    assert result.prepared is not None
    assert result.prepared.stages[0].tree.values["paths"]["k8999"] == "x/8999"


def test_what_is_read_keeps_values_and_lines() -> None:
    reader = Reader("a.yaml")
    assert reader.read("a: &x {b: [1, 2.5, yes]}\nc: *x\nd: 12:30:00\n") == {
        "a": {"b": [1, 2.5, True]},
        "c": {"b": [1, 2.5, True]},
        "d": "12:30:00",
    }
    assert reader.origins["a", "b"] == "a.yaml:1" and reader.origins["d",] == "a.yaml:3"
    assert not reader.problems
