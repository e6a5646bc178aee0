"""Wrong recipes, profiles and options: one message with the place of the mistake and exit code 2, never a traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.errors import LauncherError, RequestError
from launcher.profiles import default_runs_root
from launcher.recipe import explain, load
from tests.launcher.wrong_input import BASE, of_profile, of_text, outcome


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("hours: 2024-13-45", "'2024-13-45' cannot be read as timestamp"),
        ("hours: 2024-12-24", "YAML reads as date; put text in quotes"),
        ("seed: !!int abc", "'abc' cannot be read as int"),
        ("train: {epochs: !!float abc}", "'abc' cannot be read as float"),
        ("description: !!bool maybe", "'maybe' cannot be read as bool"),
        ("description: !!timestamp x", "'x' cannot be read as timestamp"),
        ("description: !!binary 'é'", "not valid YAML"),
        ("description: !!binary aGVsbG8=", "YAML reads as bytes"),
        ("description: !!foo bar", "not valid YAML"),
        ("needs: !!set {a, b}", "is no tag of a mapping or a list"),
        ("needs: !!python/object/apply:os.system [ls]", "is no tag of a mapping or a list"),
        ("seed: 0b_", "'0b_' cannot be read as int"),
        ("seed: 0x_", "'0x_' cannot be read as int"),
        ("seed: " + "9" * 5000, "cannot be read as int"),
        ("seed: " + "9" * 30, "the number is too large"),
        ("train: {learning_rate: " + "9" * 400 + "}", "the number is too large"),
        ("train: {learning_rate: .inf}", "train.learning_rate is Infinity; a number above 0 is needed"),
        ("train: {learning_rate: .nan}", "train.learning_rate is NaN; a number above 0 is needed"),
        ("train: {learning_rate: '1e999'}", "a number above 0 is needed"),
        ("train: {max_steps: 1e300}", "a whole number above 0 or null is needed"),
        ("base: /", "base: "),
        ("base: ''\nbase2: .", "unknown key 'base2'"),
        ("base: ~nosuch/x", "there is no user named 'nosuch' here"),
        ("base: [a]", "base"),
        ("? [a, b]\n: c", "a key must be text"),
        ("? {a: b}\n: c", "a key must be text"),
        ('description: "a\\0b"', "has a NUL character in it"),
        ('"a\\0b": c', "has a NUL character in it"),
        ("needs: *x", "undefined alias"),
        ("<<: {a: 1}", "unknown key '<<'"),
        ("environment: {'A=B': x}", "environment: 'A=B' cannot be the name of a variable"),
        ("environment: {'': x}", "environment: '' cannot be the name of a variable"),
        ("environment: {'A\\nB': x}", "cannot be the name of a variable"),
        ("environment: [A]", "environment is"),
        ("environment: {A: 5}", "environment.A is 5; text is needed"),
        ("resources: 5", "resources is 5; a mapping is needed"),
        ("train: [1]", "train is [1]; a mapping is needed"),
    ],
)
def test_mistakes_in_a_recipe_have_their_line(extra: str, said: str) -> None:
    result = of_text(extra + "\n")
    assert result.code == 2
    assert any(line.startswith("t.yaml:") and said in line for line in result.message.splitlines()), result.message


@pytest.mark.parametrize("path", ["~nosuch/x", "a\nb", "a\x1b]0;title\x07b", "a\rb", "a\udcffb"])
@pytest.mark.parametrize("key", ["data.images", "data.records", "model.language.path"])
def test_paths_that_no_job_can_take_are_refused(key: str, path: str) -> None:
    result = of_text("", f"{key}={path}")
    assert result.code == 2 and result.message.startswith(f"--set {key}: {key}")


def test_values_that_are_not_utf8_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    result = of_text("", "environment.X=\udcff")
    assert result.code == 2 and result.message == "--set environment.X: environment.X is not UTF-8 text, " + (
        "as plans and records are"
    )
    monkeypatch.setenv("ODD", "\udcff")
    result = of_text('environment: {X: "${env:ODD}"}\n')
    assert result.code == 2 and "t.yaml:4: environment.X is not UTF-8 text" in result.message


@pytest.mark.parametrize(
    "given", ["train.epochs=2024-13-45", "train.epochs=!!bool x", "seed=" + "9" * 5000, "train.betas=[", "seed=.nan"]
)
def test_options_that_are_no_value_of_their_key(given: str) -> None:
    key = given.partition("=")[0]
    result = of_text("", given)
    assert result.code == 2 and result.message.startswith(f"--set {key}: {key} is ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BASE.encode("utf-16"), "it is UTF-16 text; save it as UTF-8"),
        (BASE.encode() + b"description: \xe9\n", "(line 4) is not UTF-8"),
        (b"\0" * 100, "control characters are not allowed"),
        (b"\x89PNG\r\n\x1a\n", "is not UTF-8"),
    ],
)
def test_files_that_are_no_text(here: Path, content: bytes, said: str) -> None:
    (here / "t.yaml").write_bytes(content)
    result = outcome("t.yaml")
    assert result.code == 2 and result.message.startswith("t.yaml: ") and said in result.message


def test_a_byte_order_mark_is_passed_by(here: Path) -> None:
    (here / "t.yaml").write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert outcome("t.yaml").code == 0


def test_what_is_no_file_is_refused_at_once(here: Path) -> None:
    os.mkfifo(here / "pipe.yaml")
    (here / "folder.yaml").mkdir()
    (here / "loop.yaml").symlink_to("loop.yaml")
    for name in ("pipe.yaml", "folder.yaml", "loop.yaml", "/dev/zero", ".", "/"):
        result = outcome(name)
        assert result.code == 2 and "is not a regular file that can be read" in result.message, name
    for name in ("./" + "a" * 5000 + ".yaml", "./none.yaml", "~nosuch/x.yaml", ""):
        assert outcome(name).code == 2, name


def test_a_pipe_in_place_of_a_base_or_of_profiles_is_not_waited_for(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(here / "below.yaml")
    assert of_text("base: below\n").code == 2
    monkeypatch.setenv("LLAVAJOB_PROFILES", str(here / "below.yaml"))
    result = of_text("")
    assert result.code == 2 and "it is a pipe or a device" in result.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: pipeline\n", "q.yaml:1: "),
        ("kind: pipeline\nstages:\n", "q.yaml:2: "),
        ("kind: pipeline\nstages: 5\n", "q.yaml:2: "),
        ("kind: pipeline\nstages: [a]\n", "q.yaml:2: "),
        ("kind: pipeline\nstages: {}\n", "q.yaml:2: "),
        ("kind: pipeline\nstages: {a: {}}\n", "q.yaml:2: stage 'a' needs a kind"),
        ("kind: pipeline\nstages: {a: 5}\n", "q.yaml:2: stage"),
        ("kind: pipeline\nstages: {a: {kind: pipeline}}\n", "q.yaml:2: stage 'a' needs a kind"),
        ("kind: pipeline\nstages: {a: {kind: [train]}}\n", "q.yaml:2: stage 'a' needs a kind"),
        ("kind: pipeline\nstages: {a: {base: 5}}\n", "q.yaml:2: "),
        ("kind: [train]\n", "q.yaml:1: kind is"),
        ("kind:\n", "q.yaml:1: kind is missing"),
    ],
)
def test_pipelines_without_stages_are_refused_by_submit_and_recipes(here: Path, text: str, said: str) -> None:
    (here / "q.yaml").write_text(text)
    result = outcome("q.yaml")
    assert result.code == 2 and said in result.message
    with pytest.raises(LauncherError) as caught:
        explain(load("q.yaml"))
    assert caught.value.exit_code == 2 and said in caught.value.message


_SLURM = "profiles:\n  night: {backend: slurm, slurm: "
_KUBERNETES = "profiles:\n  night: {backend: kubernetes, kubernetes: "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("profiles:\n  night:\n    backend: slurm\n    slurm:\n", ":4: slurm is null; a mapping is needed"),
        ("profiles:\n  night:\n    backend: local\n    environment: A=b\n", ":4: environment is"),
        ("profiles:\n  night:\n    backend: local\n    environment: [A=b]\n", ":4: environment is"),
        ("profiles:\n  night:\n    backend: local\n    environment: {A=: b}\n", ":4: environment: 'A='"),
        ("profiles:\n  night:\n    backend: [local]\n", ":3: backend is"),
        ("profiles:\n  night:\n    backend: {a: b}\n", ":3: backend is"),
        ("profiles:\n  night: 5\n", ":2: profiles.night: a mapping is needed"),
        ("profiles:\n  night:\n", ":2: profiles.night: a mapping is needed"),
        ("profiles: 5\n", ":1: profiles is 5; a mapping is needed"),
        ("profiles: [night]\n", ":1: profiles is"),
        ("- night\n", ":1: a mapping of keys is needed here"),
        ("default: [a]\n", ":1: default is"),
        ("profiles:\n  night: {backend: local, runs: ~nosuch/x}\n", ":2: runs: ~nosuch/x: there is no user named"),
        ('profiles:\n  night: {backend: local, runs: "a\\nb"}\n', ":2: runs has a line break"),
        ('profiles:\n  night: {backend: local, python: "a\\nb"}\n', ":2: python has a line break"),
        ('profiles:\n  night: {backend: local, runs: "a\\0b"}\n', ":2: profiles.night.runs has a NUL"),
        ("profiles:\n  night: {backend: local, runs: [a]}\n", ":2: runs is"),
        ("profiles:\n  night: {backend: local, values: 5}\n", ":2: values is 5"),
        ("profiles:\n  night: {backend: local, values: {resources: 5}}\n", ":2: values: no recipe has a key"),
        (_SLURM + "{container: \"it's\"}}\n", ":2: slurm.container is \"it's\"; arguments"),
        (_SLURM + "{mem: " + "9" * 400 + "T}}\n", ":2: slurm.mem is"),
        (_SLURM + "{time: '" + "9" * 5000 + "'}}\n", ":2: slurm.time is"),
        (_SLURM + "{gpus: 'a100:" + "9" * 5000 + "'}}\n", ":2: slurm.gpus is"),
        (_KUBERNETES + "{memory: " + "9" * 4299 + "Gi}}\n", ":2: kubernetes.mem"),
        (_KUBERNETES + "{volumes: [{mount: [a], pvc: b}]}}\n", ".mount is ['a']"),
        (_KUBERNETES + "{volumes: [5]}}\n", ":2: kubernetes.volumes is"),
        (_KUBERNETES + "{volumes: {a: b}}}\n", ":2: kubernetes.volumes is"),
        (_KUBERNETES + "{tolerations: [{key: [a]}]}}\n", ".key is"),
        (_KUBERNETES + "{manifests: {training: /dev/zero}}}\n", "or a device"),
        (_KUBERNETES + "{manifests: {training: ~no/x}}}\n", "no user named 'no'"),
    ],
)  # fmt: skip
def test_mistakes_in_a_profile_have_their_line(here: Path, text: str, said: str) -> None:
    result = of_profile(text)
    assert result.code == 2
    lines = result.message.splitlines()
    assert any(line.startswith(f"{here}/llavajob.yaml:") and said in line for line in lines), result.message


def test_a_manifest_that_grows_is_refused(here: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    text = "apiVersion: kubeflow.org/v1\nkind: PyTorchJob\n" + "\n".join(lines) + "\n"
    for content, said in ((text, "more than 20,000 values"), ("a: " + "[" * 9000, "not valid YAML")):
        (here / "job.yaml").write_text(content)
        profile = "profiles:\n  night: {backend: kubernetes, kubernetes: {manifests: {training: job.yaml}}}\n"
        result = of_profile(profile)
        assert result.code == 2 and said in result.message


def test_a_folder_of_runs_that_cannot_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVAJOB_RUNS", "~nosuch/x")
    with pytest.raises(RequestError, match="there is no user named 'nosuch' here"):
        default_runs_root()
