"""What is shipped: manifests that are valid as they stand, and a wheel that has all it needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from launcher.backends.kubernetes.bases import read_base

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "manifests").glob("*.yaml")), ids=lambda p: p.name)
def test_manifests_are_whole(path: Path) -> None:
    other: dict[str, set[str]] = {"ServiceAccount": set(), "Role": {"rules"}, "RoleBinding": {"subjects", "roleRef"}}
    for document in yaml.safe_load_all(path.read_text()):
        assert {"apiVersion", "kind", "metadata", *other.get(document["kind"], {"spec"})} <= set(document)


@pytest.mark.parametrize("name", ["training", "evaluation", "pipeline"])
def test_rendering_starts_from_the_shipped_jobs(name: str) -> None:
    assert read_base(name, ROOT / f"manifests/{name}-job.yaml")["metadata"]["name"]


@pytest.mark.parametrize("name", ["training", "evaluation", "pipeline"])
def test_the_shipped_jobs_run_without_privilege(name: str) -> None:
    job = yaml.safe_load((ROOT / f"manifests/{name}-job.yaml").read_text())
    for replica in job["spec"].get("pytorchReplicaSpecs", {"": job["spec"]}).values():
        pod = replica["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        fenced = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert [container["securityContext"] for container in pod["containers"]] == [fenced]
        assert pod.get("automountServiceAccountToken", True) == (name == "pipeline")


def test_the_training_job_keeps_the_operators_rules() -> None:
    """Rules of the training operator's webhook, release 1.9 (pkg/webhooks/pytorch)."""
    job = yaml.safe_load((ROOT / "manifests/training-job.yaml").read_text())
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"]["replicas"] == 1 and replicas["Worker"]["replicas"] >= 1
    for spec in replicas.values():
        names = [container["name"] for container in spec["template"]["spec"]["containers"]]
        assert names.count("pytorch") == 1
        assert spec["restartPolicy"] in {"Always", "OnFailure", "Never", "ExitCode"}
    assert job["spec"]["runPolicy"]["cleanPodPolicy"] in {"None", "Running", "All"}


def test_the_wheel_carries_recipes_and_manifests(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"launcher/_jobs/{path.name}" for path in (ROOT / "jobs").glob("*.yaml")} <= names
    assert {f"launcher/_manifests/{path.name}" for path in (ROOT / "manifests").glob("*.yaml")} <= names
    assert {"launcher/cli.py", "launcher/runtime_schema.json", "llava/train.py"} <= names
    assert not [name for name in names if name.startswith("tests")]
    code = "from launcher.shipped import recipe_names; print(*recipe_names())"
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    done = subprocess.run([sys.executable, "-c", code], cwd=site, capture_output=True, text=True, check=True)
    assert {"finetune", "pretrain", "mmbench", "quickstart"} <= set(done.stdout.split())
