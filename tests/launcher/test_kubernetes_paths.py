"""Paths that pods cannot see are told before anything is sent; those that a volume or the image may hold are sent."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.backends.kubernetes.reach import PodReach
from launcher.profiles import Profile, find_profile
from tests.shell import Shell

Write = Callable[..., str]
NO_VOLUME = "is below no volume of the profile: pods do not see it"
OWN_EVALUATION = """\
apiVersion: batch/v1
kind: Job
metadata: {name: mine}
spec:
  template:
    spec:
      containers:
        - name: llavajob
          image: own:1
          volumeMounts: [{name: sets, mountPath: /sets}]
      volumes:
        - {name: sets, hostPath: {path: /sets}}
"""


def profile(shell: Shell, *volumes: dict[str, Any], values: dict[str, Any] | None = None, **keys: Any) -> None:
    """Write the profile ``site``, which keeps runs below /runs on a claim."""
    kubernetes = {"volumes": [{"mount": "/runs", "pvc": "runs"}, *volumes], **keys}
    site = {"backend": "kubernetes", "kubernetes": kubernetes, "values": values or {}}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump({"profiles": {"site": site}}))


def refused(shell: Shell, recipe: str, *options: str) -> str:
    """Submit where there is no cluster; return what is said."""
    return shell("submit", recipe, "--on", "site", *options, check=2, KUBECONFIG="/nowhere").err


def reaching(shell: Shell, recipe: str, *options: str) -> str:
    """Submit what passes every check: then no cluster is found."""
    said = shell("submit", recipe, "--on", "site", *options, check=1, KUBECONFIG="/nowhere").err
    assert "kubeconfig" in said.lower() and "cannot start yet" not in said
    return said


def test_the_shipped_recipes_inputs_below_home_are_refused_with_the_cure(shell: Shell) -> None:
    profile(shell)
    said = refused(shell, "pretrain", "--set", "kubernetes.image=a:1")
    home = os.environ["HOME"]
    for key, path in {
        "model.language.path": "weights/vicuna-7b-v1.5",
        "model.vision.path": "weights/clip-vit-large-patch14-336",
        "data.records": "data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
        "data.images": "data/LLaVA-Pretrain/images",
    }.items():
        assert f"{key}: {home}/llavajob/{path} {NO_VOLUME}" in said
    assert "values: {paths: {weights: /runs/weights}} in the profile, or --set paths.weights=/runs/weights" in said
    assert not list(shell.runs.glob("*"))


def test_the_cure_is_one(shell: Shell) -> None:
    profile(shell, values={"paths": {"weights": "/runs/weights", "data": "/runs/data"}})
    reaching(shell, "pretrain")
    profile(shell)
    reaching(shell, "pretrain", "--set", "paths.weights=/runs/weights", "--set", "paths.data=/runs/data")


def test_what_is_here_and_on_no_volume_is_refused(shell: Shell, recipe: Write) -> None:
    profile(shell)
    said = refused(shell, recipe())
    assert said.count(NO_VOLUME) == 4
    assert re.search(rf"train.yaml:\d+: data.records: {shell.folder}/records.json {NO_VOLUME}", said)
    assert "name it: --set data.records=/runs/records.json" in said
    shown = shell("submit", recipe(), "--on", "site", "--dry-run").err
    assert f"Missing: data.records {shell.folder}/records.json {NO_VOLUME}" in shown


@pytest.mark.parametrize("how", [{"pvc": "a"}, {"nfs": "server:/x"}, {"host_path": "/x", "read_only": True}])
def test_what_a_volume_holds_is_sent(shell: Shell, recipe: Write, how: dict[str, Any]) -> None:
    profile(shell, {"mount": str(shell.folder.parent), **how})
    assert "Note:" not in reaching(shell, recipe())


def test_an_empty_volume_holds_nothing(shell: Shell, recipe: Write) -> None:
    profile(shell, {"mount": str(shell.folder.parent), "pvc": "a"}, {"mount": str(shell.folder), "empty_dir": True})
    assert refused(shell, recipe()).count("empty in each new pod") == 4


def test_what_only_the_image_can_hold_is_sent_with_a_note(shell: Shell, recipe: Write) -> None:
    profile(shell)
    parts = {"language": {"path": "/opt/weights/v"}, "vision": {"path": "/opt/weights/c"}}
    asked = recipe(model=parts, data={"records": "/runs/r.json", "images": "/runs/i"})
    said = reaching(shell, asked)
    assert "Note: model.language.path: /opt/weights/v is below no volume of the profile" in said
    assert said.count("Note:") == 2
    profile(shell, image_folders=["/opt/weights"])
    assert "Note:" not in reaching(shell, asked)


def test_a_folder_that_image_and_machine_have_can_be_named(shell: Shell, recipe: Write) -> None:
    profile(shell, image_folders=[str(shell.folder)])
    reaching(shell, recipe())
    profile(shell, image_folders=["weights"])
    assert "kubernetes.image_folders: 'weights' is not a full path in the image" in refused(shell, recipe())


def test_outputs_that_no_volume_keeps_are_refused(shell: Shell) -> None:
    profile(shell, {"mount": "/scratch", "empty_dir": True})
    lost = "is below no volume that outlasts the pods"
    source = ["--set", "convert.source=/runs/old/model"]
    for output in ("/models/mine", "/scratch/mine", "~/models"):
        said = refused(shell, "convert", *source, "--set", f"convert.output={output}")
        assert f"convert.output: {Path(output).expanduser()} {lost}" in said and "--set convert.output=/runs/m" in said
    reaching(shell, "convert", *source, "--set", "convert.output=/runs/models/mine")


def test_a_run_of_this_machine_is_no_input_for_pods(shell: Shell) -> None:
    profile(shell)
    said = refused(shell, "convert", "--set", f"convert.source={shell.runs}/one/model")
    assert f"convert.source: {shell.runs}/one/model {NO_VOLUME}" in said


def test_mounts_of_an_own_base_count(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    (shell.folder / "own.yaml").write_text(OWN_EVALUATION)
    profile(shell, manifests={"evaluation": "own.yaml"})
    monkeypatch.chdir(shell.folder)
    reach = PodReach(find_profile("site"))
    assert reach.unseen(Path("/sets/a")) == reach.doubt(Path("/sets/a")) == reach.lost(Path("/sets/a")) == ""
    assert reach.unseen(Path.home() / "a") == NO_VOLUME and "the image must hold it" in reach.doubt(Path("/other/a"))


def test_a_home_at_the_root_makes_nothing_the_submitters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    reach = PodReach(Profile("pods", "kubernetes", place=find_profile("kubernetes").place))
    assert reach.unseen(Path("/not/here")) == "" and reach.unseen(Path("/usr")) == NO_VOLUME


# The quickstart


def cache_of(shell: Shell, *options: str) -> Any:
    """The cache that the quickstart's first stage is told."""
    out = shell("submit", "quickstart", "--on", "site", "--name", "q", "--dry-run", *options).out
    plan = yaml.safe_load(next(yaml.safe_load_all(out))["data"]["plan.yaml"])
    return plan["configs"]["/runs/q/stages/world/config.yaml"]["toy"]["cache"]


def test_the_quickstart_goes_without_a_cache_that_pods_cannot_see(shell: Shell) -> None:
    profile(shell)
    assert cache_of(shell) is None
    reaching(shell, "quickstart")


def test_the_quickstart_keeps_a_cache_that_pods_may_see(shell: Shell) -> None:
    profile(shell)
    assert cache_of(shell, "--set", "stages.world.toy.cache=/runs/cache") == "/runs/cache"
    assert cache_of(shell, "--set", "stages.world.toy.cache=/opt/cache") == "/opt/cache"
    profile(shell, {"mount": os.environ["HOME"], "pvc": "home"})
    assert cache_of(shell) == f"{os.environ['HOME']}/.cache/llavajob/bases"
