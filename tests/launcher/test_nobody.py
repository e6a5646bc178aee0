"""Callers with little: a user id without a name, no home, another encoding, folders that are no UTF-8, no folder."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.user import user_name
from tests.shell import Shell

Write = Callable[..., str]
NAMELESS = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
can_be_nameless = pytest.mark.skipif(
    subprocess.run([*NAMELESS, "true"], capture_output=True).returncode != 0, reason="no user namespaces here"
)


def _run(command: list[str], folder: Path | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=120)
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done


@can_be_nameless
def test_a_number_stands_for_a_user_without_a_name(shell: Shell, recipe: Write) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "LLAVAJOB_RUNS": str(shell.runs)}
    nameless = [*NAMELESS, *shell.command]
    name = recipe(environment={"PYTHONPATH": str(Path(__file__).parent / "standin"), "STANDIN_STEPS": "3000"})
    sent = _run([*nameless, "submit", name, "--name", "u1"], shell.folder, **environment)
    assert sent.returncode == 0, sent.stderr
    assert json.loads((shell.runs / "u1/run.json").read_text())["user"] == "54321"
    ended = _run([*nameless, "cancel", "u1"], shell.folder, **environment)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((shell.runs / "u1/state.json").read_text())["state"] == "CANCELLED"


def test_a_known_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    assert user_name() == "ada"


@can_be_nameless
def test_without_a_home_only_what_needs_it_fails(shell: Shell, recipe: Write) -> None:
    nameless = [*NAMELESS, *shell.command]
    name = recipe()
    with_runs = {"PATH": os.environ["PATH"], "LLAVAJOB_RUNS": str(shell.runs)}
    for arguments in (["list"], ["profiles"], ["render", name], ["render", name, "--on", "kubernetes"]):
        done = _run([*nameless, *arguments], shell.folder, **with_runs)
        assert done.returncode == 0, (arguments, done.stderr)
    refused = _run([*nameless, "list"], shell.folder, PATH=os.environ["PATH"])
    assert refused.returncode == 2
    assert refused.stderr.decode().splitlines() == [
        "Error: the home folder is not known: HOME is not set",
        "Set HOME, or name the folder: LLAVAJOB_RUNS for runs, LLAVAJOB_PROFILES for profiles.",
    ]


@pytest.mark.parametrize("encoding", ["iso-8859-1", "gbk", "ascii"])
def test_terminals_of_other_encodings_show_what_they_can(shell: Shell, recipe: Write, encoding: str) -> None:
    name = recipe(description="ümläut 模型 🌋", environment={"PYTHONPATH": ".", "WORDS": "ü 模型"})
    rendered = _run([*shell.command, "render", name], shell.folder, **{**os.environ, "PYTHONIOENCODING": encoding})
    assert rendered.returncode == 0
    assert "ü 模型".encode(encoding, errors="backslashreplace") in rendered.stdout
    helped = _run([*shell.command, "--help"], shell.folder, **{**os.environ, "PYTHONIOENCODING": encoding})
    assert helped.returncode == 0 and b"submit" in helped.stdout


def test_folders_with_names_that_are_no_utf8(shell: Shell, recipe: Write) -> None:
    name = recipe()
    folder = os.fsencode(shell.folder.parent) + b"/M\xfcller"
    os.mkdir(folder)
    path = str(shell.folder / name)
    listed = _run([*shell.command, "list"], folder, **os.environ)
    assert listed.returncode == 0
    refused = _run([*shell.command, "submit", path, "--name", "here"], folder, **os.environ)
    assert (
        refused.returncode == 2
        and b"is not UTF-8 text" in refused.stderr
        and b"Error: " + path.encode() in (refused.stderr)
    )
    assert not (shell.runs / "here").exists()
    full = ["--set", "model.language.path=/tmp", "--set", "model.vision.path=/tmp", "--set", "data.images=/tmp"]
    full += ["--set", f"data.records={shell.folder}/records.json"]
    sent = _run([*shell.command, "submit", path, "--name", "there", "--follow", *full], folder, **os.environ)
    assert sent.returncode == 0, sent.stderr
    record = json.loads((shell.runs / "there/run.json").read_text())
    assert os.fsencode(record["folder"]) == folder, "resume goes on from there"
    runs = os.fsdecode(folder + b"/runs")
    elsewhere = _run([*shell.command, "list"], shell.folder, **{**os.environ, "LLAVAJOB_RUNS": runs})
    assert elsewhere.returncode == 0
    refused = _run([*shell.command, "render", path], shell.folder, **{**os.environ, "LLAVAJOB_RUNS": runs})
    assert refused.returncode == 2 and b"is not UTF-8 text" in refused.stderr


def test_a_current_folder_that_was_removed(shell: Shell, recipe: Write) -> None:
    path = str(shell.folder / recipe())
    gone = shell.folder.parent / "gone"
    gone.mkdir()
    script = 'rmdir "$PWD"; exec "$@"'
    for arguments, code in ((["list"], 0), (["submit", path], 2)):
        done = _run(["sh", "-c", script, "sh", *shell.command, *arguments], gone, **os.environ)
        assert done.returncode == code, done.stderr
        gone.mkdir(exist_ok=True)
    assert b"the current folder cannot be used" in done.stderr


def test_a_proxy_that_cannot_be_used_is_named(shell: Shell, recipe: Write, tmp_path: Path) -> None:
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }  # fmt: skip
    (tmp_path / "config").write_text(json.dumps(config))
    proxies = {
        "HTTPS_PROXY": "socks5://user:secret@127.0.0.1:1",
        "ALL_PROXY": "socks5h://127.0.0.1:1",
        "HTTP_PROXY": "socks5://x",
    }
    done = shell("doctor", "--on", "kubernetes", check=1, KUBECONFIG=str(tmp_path / "config"), **proxies)
    assert "the proxy 127.0.0.1:1 cannot be used" in done.out + done.err
    assert "secret" not in done.out + done.err
