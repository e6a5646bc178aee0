"""Sharded evaluation on real pods: an Indexed Job with a limit, a merge after it, no row lost or answered twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.kubernetes.bed import Cluster
from tests.kubernetes.jobs import names, write_profile
from tests.llava.conftest import tiny_language, tiny_vision
from tests.llava.tiny_hf import build_llava, some_rows, write_tsv
from tests.shell import STANDIN, Shell, shell
from tests.world import PLACE

__all__ = ["shell", "tiny_language", "tiny_vision"]
Score = Callable[..., str]
PODS_S = 120.0


@pytest.fixture
def score(shell: Shell) -> Score:
    """Write a recipe of an evaluation."""

    def write(environment: dict[str, str], retries: int = 0, **settings: Any) -> str:
        values = {
            "kind": "eval",
            "resources": {"nodes": 2},
            "retries": {"without_progress": retries},
            "environment": environment,
            "eval": {"model": ".", "data": "records.json", **settings},
        }
        (shell.folder / "records.json").write_text("[]")
        (shell.folder / "score.yaml").write_text(yaml.safe_dump(values))
        return "score.yaml"

    return write


def standin(**environment: str) -> dict[str, str]:
    """What has the stand-in runtime run, and how it is to behave."""
    return {"PYTHONPATH": str(STANDIN), **environment}


@pytest.fixture
def kept(shell: Shell, cluster: Cluster, namespace: str) -> Path:
    return write_profile(shell, cluster, namespace, shell.folder, apart=False)


def submit(shell: Shell, recipe: str, run: str) -> None:
    shell("submit", recipe, "--on", "pods", "--name", run)


def report(kept: Path, run: str) -> str:
    """What the merge wrote."""
    return (kept / run / "eval/mmbench/report.txt").read_text()


def words(kept: Path, run: str) -> list[dict[str, Any]]:
    """What the members said last, in the order of their shards."""
    return [json.loads(path.read_text()) for path in sorted((kept / run / "steps").glob("eval-[0-9]*.json"))]


def test_shards_run_with_a_limit_and_the_merge_after_all(
    shell: Shell, score: Score, cluster: Cluster, namespace: str, kept: Path
) -> None:
    submit(shell, score(standin(STANDIN_STEP_S="2"), shards=5), "five")
    seen = shell.wait("five", "RUNNING", most_s=PODS_S)
    assert [step["name"] for step in seen["stages"]] == ["eval", "eval-merge"]
    spec = cluster.get("job", "five-eval", namespace)["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 5, 2)
    done = shell.wait("five", most_s=PODS_S)
    assert done["state"] == "SUCCEEDED", done["reason"]
    assert report(kept, "five") == "answered by 5 shards, 5 asked for\n"
    members = words(kept, "five")
    together = [sum(one["started"] <= m["started"] < one["ended"] for one in members) for m in members]
    assert max(together) == 2
    merged = next(step for step in done["stages"] if step["name"] == "eval-merge")
    assert merged["started"] >= max(member["ended"] for member in members)
    assert "gpus" in shell("logs", "five", "--shard", "4").out
    assert shell.left("five") == []


def test_a_killed_shard_fails_the_run_and_only_it_is_sent_again(
    shell: Shell, score: Score, cluster: Cluster, namespace: str, kept: Path
) -> None:
    submit(shell, score(standin(STANDIN_FAIL="shard:2"), shards=4), "hit")
    failed = shell.wait("hit", most_s=PODS_S)
    assert failed["state"] == "FAILED"
    assert failed["reason"].startswith("eval: shard 2: exit code 137 (SIGKILL): killed"), failed["reason"]
    before = written(kept, "hit")
    assert sorted(before) == ["0", "1", "3"]
    shell("resume", "hit", "--set", "environment.STANDIN_FAIL=none")
    assert cluster.get("job", "hit", namespace)["metadata"]["labels"]["llavajob/step"] == "conductor"
    assert shell.wait("hit", most_s=PODS_S)["state"] == "SUCCEEDED"
    assert cluster.get("job", "hit-eval", namespace)["spec"]["completions"] == 1
    assert report(kept, "hit") == "answered by 4 shards, 4 asked for\n"
    after = written(kept, "hit")
    assert sorted(after) == ["0", "1", "2", "3"] and before.items() <= after.items()


def written(kept: Path, run: str) -> dict[str, int]:
    """When each shard's answers were written."""
    return {path.stem: path.stat().st_mtime_ns for path in (kept / run / "eval/mmbench/answers").iterdir()}


def test_another_number_of_shards_does_all_of_them(shell: Shell, score: Score, kept: Path) -> None:
    submit(shell, score(standin(STANDIN_FAIL="shard:1"), shards=2), "more")
    assert shell.wait("more", most_s=PODS_S)["state"] == "FAILED"
    shell("resume", "more", "--set", "eval.shards=3", "--set", "environment.STANDIN_FAIL=none")
    assert shell.wait("more", most_s=PODS_S)["state"] == "SUCCEEDED"
    assert report(kept, "more") == "answered by 3 shards, 3 asked for\n"


def test_a_shard_whose_pod_has_to_go_is_tried_again(
    shell: Shell, score: Score, cluster: Cluster, namespace: str, kept: Path
) -> None:
    """A drained node takes no try of those that the recipe allows, and ends no other shard."""
    submit(shell, score(standin(STANDIN_STEP_S="6"), shards=2), "drained")
    shell.until(lambda: len(words(kept, "drained")) == 2, "both shards at work", PODS_S)
    pod = next(name for name in names(cluster, namespace) if name.startswith("drained-eval-1-"))
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    cluster.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))
    done = shell.wait("drained", most_s=PODS_S)
    assert done["state"] == "SUCCEEDED", done["reason"]
    assert report(kept, "drained") == "answered by 2 shards, 2 asked for\n"


def test_cancel_ends_members_that_run_and_members_that_wait(
    shell: Shell, score: Score, cluster: Cluster, namespace: str, kept: Path
) -> None:
    submit(shell, score(standin(STANDIN_STEP_S="600"), shards=6), "array")
    shell.until(lambda: len(words(kept, "array")) == 2, "two members at work", PODS_S)
    shell("cancel", "array")
    assert [n for kind in ("jobs", "pods") for n in names(cluster, namespace, kind)] == [] == shell.left("array")
    cancelled = shell.status("array")
    assert cancelled["state"] == "CANCELLED" and cancelled["reason"].startswith("cancelled by root@")
    assert len(words(kept, "array")) == 2, "no member started because another had gone"


# With the real runtime


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_language: Path, tiny_vision: Path) -> Path:
    """A tiny model as Hugging Face has it."""
    place = tmp_path_factory.mktemp("hf")
    return build_llava(place, tiny_language, tiny_vision, {"template": "vicuna", "square": "pad"})


def test_every_row_is_answered_once_after_kills_and_with_other_shards(
    shell: Shell, score: Score, cluster: Cluster, namespace: str, model: Path, own_place: Path
) -> None:
    """One shard is killed, and tried again by its job; its next try is killed, too, and the run is resumed."""
    rows = some_rows(40)
    (own_place / "data").mkdir()
    data = write_tsv(own_place / "data/TINY_DEV.tsv", rows)
    kept = write_profile(shell, cluster, namespace, shell.folder, model, data.parent, apart=False)
    settings = {"model": str(model), "data": str(data), "device": "cpu", "shards": 2, "batch": 1}
    submit(shell, score(PLACE, retries=1, **settings, max_new_tokens=100), "real")
    answers = kept / "real/eval/mmbench/answers"
    hurt: set[int] = set()
    for count in (2, 4):
        shell.until(lambda count=count: len(answered(answers, "0001of0002")) >= count, f"{count} answers", PODS_S)
        process = shell.until(lambda: member("real", 1, hurt), "shard 1", PODS_S)
        hurt.add(process.pid)
        process.kill()
    failed = shell.wait("real", most_s=PODS_S)
    assert failed["state"] == "FAILED" and "shard 1: exit code 137 (SIGKILL)" in failed["reason"], failed["reason"]
    before = answered(answers)
    assert len(before) < len(rows)
    shell("resume", "real", "--set", "eval.shards=3", "--set", "eval.batch=8")
    assert shell.wait("real", most_s=PODS_S)["state"] == "SUCCEEDED"
    after = answered(answers)
    assert Counter(answer["index"] for answer in after) == Counter(int(row["index"]) for row in rows)
    assert all(answer in after for answer in before), "what was answered before the kills is not answered anew"


def answered(folder: Path, shard: str = "") -> list[dict[str, Any]]:
    """The whole lines of answers, of all shards or of one."""
    paths = sorted(folder.glob(f"shard{shard}*.jsonl")) if folder.is_dir() else []
    lines = [line for path in paths for line in path.read_bytes().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def member(run: str, shard: int, but: set[int]) -> psutil.Process | None:
    """The process of a shard, wherever its pod is on this host."""
    for process in psutil.process_iter():
        try:
            environment, command = process.environ(), process.cmdline()
        except (psutil.Error, OSError):
            continue
        mine = environment.get("LLAVAJOB_RUN", "").endswith(f"/{run}") and process.pid not in but
        if mine and environment.get("LLAVAJOB_NODE") == str(shard) and "llava.mmbench" in command:
            return process
    return None
