"""What is copied of a checkout: changes and code, without keys, credentials and what git ignores."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.code_changes import code_changes
from launcher.private_files import is_key_file
from tests.shell import STANDIN, Shell

Write = Callable[..., str]
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\n-----END OPENSSH PRIVATE KEY-----\n"
SECRET = "correct-horse-7"


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=folder, check=True)


def commit_all(folder: Path) -> None:
    git(folder, "init", "-q")
    git(folder, "add", "--force", ".")
    git(folder, "commit", "-qm", "1")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which every kind of file was changed and not committed."""
    folder = tmp_path / "a checkout"
    before = {
        ".env": "A=1\n", "train.py": "x = 1\n", "über name.py": "x = 1\n", "settings.yaml": "rate: 1\n",
        "notes.txt": "none\n", "gone.txt": f"{KEY}", "local.cfg": "a=1\n", ".gitignore": "local.cfg\n",
        "keys/deploy.pem": "none\n",
    }  # fmt: skip
    for name, text in before.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    commit_all(folder)
    (folder / ".env").write_text(f"A={SECRET}\n")
    (folder / "train.py").write_text(f'y = 2\nHF_TOKEN = "{SECRET}"\nheaders = {{"api_key": "{SECRET}"}}\n')
    (folder / "über name.py").write_text("tokenizer = load_tokenizer()\n")
    (folder / "settings.yaml").write_text(f"rate: 2\npassword: {SECRET}\nurl: https://me:{SECRET}@host/\n")
    (folder / "notes.txt").write_text(KEY)
    (folder / "gone.txt").unlink()
    (folder / "local.cfg").write_text(f"a={SECRET}\n")
    (folder / "keys/deploy.pem").write_text(SECRET)
    return folder


def test_a_diff_holds_changes_and_no_secrets(checkout: Path) -> None:
    found = code_changes(checkout)
    assert "+y = 2" in found.text and "+rate: 2" in found.text and "+tokenizer = load_tokenizer()" in found.text
    assert SECRET not in found.text and "b3BlbnNzaC1" not in found.text
    assert sorted(found.kept_out) == [
        ".env (its name is that of a key file)",
        "gone.txt (it held a private key)",
        "keys/deploy.pem (its name is that of a key file)",
        "local.cfg (git ignores it)",
        "notes.txt (it holds a private key)",
        "settings.yaml (lines that look like secrets)",
        "train.py (lines that look like secrets)",
    ]
    assert all(f"# not in this diff: {what}\n" in found.text for what in found.kept_out)


def test_a_diff_is_the_same_from_a_folder_within(checkout: Path) -> None:
    assert code_changes(checkout / "keys") == code_changes(checkout)


def test_a_harmless_diff_applies(checkout: Path, tmp_path: Path) -> None:
    for name in ("train.py", "settings.yaml", "gone.txt"):
        git(checkout, "checkout", "-q", "--", name)
    (checkout / "train.py").write_text("x = 1\ny = 3\n")
    (tmp_path / "code.diff").write_text(code_changes(checkout).text + "\n")
    git(checkout, "checkout", "-q", "--", ".")
    git(checkout, "apply", str(tmp_path / "code.diff"))
    assert (checkout / "train.py").read_text() == "x = 1\ny = 3\n"
    assert (checkout / "über name.py").read_text() == "tokenizer = load_tokenizer()\n"
    assert (checkout / ".env").read_text() == "A=1\n"


def test_outside_of_a_checkout_there_is_no_diff(tmp_path: Path) -> None:
    assert code_changes(tmp_path) == code_changes(tmp_path / "missing")
    assert code_changes(tmp_path).text == ""


@pytest.mark.parametrize(
    "name",
    [".env", ".env.local", "prod.env", "x/.netrc", ".npmrc", ".pypirc", "id_rsa", "id_ed25519", "a/server.key",
     "ca.pem", "me.p12", "credentials", "credentials.json", "service-account-7.json", "kubeconfig", ".kube/config",
     ".ssh/x", ".aws/config"],
)  # fmt: skip
def test_key_files_are_known_by_name(name: str) -> None:
    assert is_key_file(name)


@pytest.mark.parametrize(
    "name",
    [
        "env.py",
        "id_rsa.pub",
        ".env.example",
        "keys.py",
        "tokenizer.json",
        "key.md",
        "environment.yaml",
    ],
)
def test_other_files_are_not(name: str) -> None:
    assert not is_key_file(name)


def test_the_run_says_what_was_kept_out(shell: Shell, recipe: Write) -> None:
    name = recipe()
    (shell.folder / ".env").write_text("A=1\n")
    commit_all(shell.folder)
    (shell.folder / ".env").write_text(f"A={SECRET}\n")
    sent = shell("submit", name, "--name", "noted")
    assert "Not in code.diff: .env (its name is that of a key file)" in sent.err
    run = shell.runs / "noted"
    assert json.loads((run / "run.json").read_text())["kept_out"] == [".env (its name is that of a key file)"]
    assert (run / "code.diff").read_text() == "# not in this diff: .env (its name is that of a key file)"
    assert shell.wait("noted")["state"] == "SUCCEEDED"


def test_a_snapshot_holds_no_keys(
    shell: Shell, recipe: Write, own_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own_place / "checkout"
    shutil.copytree(STANDIN, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gitignore").write_text("scratch/\n*.local\n__pycache__/\n")
    commit_all(folder)
    package = folder / "llava"
    (package / "scratch").mkdir()
    for name in (".env", "server.key", "scratch/x.py", "notes.local"):
        (package / name).write_text(SECRET)
    (package / "data.txt").write_text(KEY)
    (package / "new.py").write_text("x = 1\n")
    (own_place / "id_rsa").write_text(SECRET)
    (package / "link.txt").symlink_to(own_place / "id_rsa")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    (shell.folder / "llavajob.yaml").write_text("profiles: {copied: {backend: local, code: snapshot}}\n")
    sent = shell("submit", recipe(), "--name", "same", "--on", "copied")
    kept_out = [
        "llava/.env (its name is that of a key file)", "llava/data.txt (it holds a private key)",
        "llava/link.txt (its name is that of a key file)", "llava/notes.local (git ignores it)",
        "llava/scratch (git ignores it)", "llava/server.key (its name is that of a key file)",
    ]  # fmt: skip
    run = shell.runs / "same"
    assert sorted(json.loads((run / "run.json").read_text())["code"]["kept_out"]) == kept_out
    assert all(what in sent.err for what in kept_out)
    assert (run / "code/llava/new.py").read_text() == "x = 1\n"
    for path in (run / "code").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert not path.is_file() or SECRET not in path.read_text(errors="replace"), path
    assert shell.wait("same")["state"] == "SUCCEEDED"
