"""What nobody foresaw ends in one line and a file; Ctrl-C and a closed pipe end without a word."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.shell import Shell

BROKEN = """\
import sys
from {package} import cli
def broken(*a, **k):
    raise {error}
{patch}
sys.argv = [{program!r}, *{arguments!r}]
cli.main()
"""


def _broken(
    package: str, error: str, patch: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    program = "llavajob" if package == "launcher" else "llava"
    code = BROKEN.format(package=package, error=error, patch=patch, arguments=list(arguments), program=program)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


@pytest.mark.parametrize(
    ("package", "patch", "arguments"),
    [
        ("launcher", "import launcher.listing; launcher.listing.list_all = broken", ("list",)),
        ("llava", "import llava.config; llava.config.schema = broken", ("schema",)),
        ("llava", "import llava.convert; llava.convert.convert_job = broken", ("convert", "a", "b")),
    ],
)
def test_an_unforeseen_error_is_one_line_and_a_private_file(
    own_place: Path, package: str, patch: str, arguments: tuple[str, ...]
) -> None:
    done = _broken(package, "KeyError('secret\\x1b]0;title\\x07')", patch, *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert "most recent call last" not in done.stderr and "\x1b" not in done.stderr
    first, second = done.stderr.strip().splitlines()
    assert "unforeseen error: KeyError: " in first and "(<string>:4)" in first
    name = "llavajob" if package == "launcher" else "llava"
    (file,) = (own_place / f"home/.local/state/{name}/errors").iterdir()
    assert second.endswith(f" {file}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert "most recent call last" in text and f"{name} {' '.join(arguments)}" in text


@pytest.mark.parametrize(
    "error", ["RecursionError('deep')", "MemoryError()", "UnicodeDecodeError('utf-8', b'x', 0, 1, 'no')"]
)
def test_any_kind_of_error_is_caught(error: str, tmp_path: Path) -> None:
    patch = "import launcher.listing; launcher.listing.list_all = broken"
    (tmp_path / "file").write_text("")
    # The state folder cannot be made: the folder for temporary files takes the traceback.
    environment = {"XDG_STATE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    done = _broken("launcher", error, patch, "list", **environment)
    assert done.returncode == 1
    assert error.partition("(")[0] in done.stderr and "most recent call last" not in done.stderr
    (file,) = tmp_path.glob("llavajob-error-*.txt")
    assert str(file) in done.stderr and stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_closed_pipe_ends_quietly(shell: Shell) -> None:
    for arguments in ("recipes --json", "render quickstart"):
        line = f'{{ "$@" {arguments}; echo "code $?" >&2; }} | true'
        done = subprocess.run(
            ["sh", "-c", line, "sh", *shell.command], capture_output=True, text=True, cwd=shell.folder
        )
        assert done.stderr.splitlines()[-1] in ("code 141", "code 0"), done.stderr
        assert "BrokenPipe" not in done.stderr and "most recent call last" not in done.stderr


def test_closed_streams_are_no_error(shell: Shell) -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-", "<&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$@" list {closed}', "sh", *shell.command], capture_output=True, text=True, cwd=shell.folder
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, closed


@pytest.mark.parametrize("package", ["launcher", "llava"])
def test_ctrl_c_ends_with_130_in_silence(package: str, tmp_path: Path) -> None:
    if package == "launcher":
        patch, arguments = "import launcher.listing; launcher.listing.list_all = wait", ["list"]
    else:
        patch, arguments = "import llava.config; llava.config.schema = wait", ["schema"]
    waiting = (
        f"def wait(*a, **k):\n    open({str(tmp_path / 'waits')!r}, 'w').close()\n    import time; time.sleep(60)\n"
    )
    code = BROKEN.format(package=package, error="KeyError", patch=waiting + patch, arguments=arguments, program=package)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "waits").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")
