"""The uncommitted changes of a git checkout, without what must not be copied: key files, ignored files, credentials."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launcher import console
from launcher.private_files import holds_private_key, ignored_among, is_key_file
from launcher.run_folder import write_aside
from launcher.secret_looks import MASK, secret_in, why_secret

_LARGEST_DIFF = 1 << 20
_MOST_EXCLUDED = 500
_QUOTED = re.compile(r"""([A-Za-z_][\w.-]*)["']?\\?\]?\s*(?::=|=>|[:=])\s*[A-Za-z]{0,2}["']([^"']*)["']""")
_BARE = re.compile(r"""^\s*(?:export\s+|set\s+|-\s*)?["']?([A-Za-z_][\w.-]*)["']?\s*[:=]\s*([^\s"'#]+)\s*(?:#.*)?$""")
_KEY_BLOCK = re.compile(r"(?m)^[+ -]\s*-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY")
_CODE = (".py", ".pyi", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".go", ".rs", ".js", ".ts", ".java")
"""In these an unquoted value is an expression."""


@dataclass
class Changes:
    """A diff and what was kept out of it."""

    text: str = ""
    kept_out: list[str] = field(default_factory=list)
    """Files whose changes are not in it, and files of which some lines are not, each with the reason."""


def code_changes(folder: Path) -> Changes:
    """Return the uncommitted change of a folder's git checkout, cut at 1 MiB; empty outside of one."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return Changes()
    root = Path(top.strip())
    listed = _git(root, "diff", "HEAD", "--name-only", "--no-renames", "-z") or ""
    names = [name for name in listed.split("\0") if name]
    ignored = ignored_among(root, names)
    reasons = {name: _why_out(root / name, name in ignored, name) for name in names}
    out = [name for name in names if reasons[name]]
    kept_out = [f"{name} ({reasons[name]})" for name in out]
    if len(out) > _MOST_EXCLUDED or not names:
        return Changes("", kept_out)
    exclude = [f":(top,exclude,literal){name}" for name in out]
    options = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--src-prefix=a/", "--dst-prefix=b/")
    text = _git(root, "-c", "core.quotePath=false", "diff", "HEAD", *options, "--", ":(top)", *exclude) or ""
    parts = []
    for name, part in _parts(text.strip()):
        if _KEY_BLOCK.search(part):
            kept_out.append(f"{name} (it held a private key)")
            continue
        masked = "\n".join(_masked(name, line) for line in part.split("\n"))
        if masked != part:
            kept_out.append(f"{name} (lines that look like secrets)")
        parts.append(masked)
    head = [f"# not in this diff: {what}" for what in kept_out]
    return Changes("\n".join([*head, *parts])[:_LARGEST_DIFF], kept_out)


def keep_changes(folder: Path, target: Path) -> list[str]:
    """Write the change of a folder's checkout into a file, if there is one; say and return what was kept out of it."""
    changes = code_changes(folder)
    if changes.text:
        write_aside(target, changes.text)
    if changes.kept_out:
        console.say(f"Not in {target.name}: {', '.join(changes.kept_out)}")
    return changes.kept_out


def _why_out(path: Path, is_ignored: bool, name: str) -> str:
    if is_key_file(name):
        return "its name is that of a key file"
    if is_ignored:
        return "git ignores it"
    return "it holds a private key" if holds_private_key(path) and not name.endswith(_CODE) else ""


def _parts(diff: str) -> Iterator[tuple[str, str]]:
    """The part of each file in a diff, with the file's name."""
    for part in re.split(r"\n(?=diff --git )", diff) if diff else ():
        yield part.partition("\n")[0].rpartition(" b/")[2], part


def _masked(file: str, line: str) -> str:
    """A line of a diff, or what is left of it when it looks like a secret."""
    if line[:1] not in ("+", "-", " ", "@") or line.startswith(("+++ ", "--- ")) or not _is_secret_line(file, line):
        return line
    # Behind the second @@ git repeats a line of the file.
    return f"{line.rpartition(' @@')[0]} @@" if line.startswith("@@ ") else f"{line[0]}{MASK}"


def _is_secret_line(file: str, line: str) -> bool:
    text = line[1:]
    if secret_in(text):
        return True
    return any(why_secret(name, value) for name, value in _assignments(file, text) if len(value) >= 4)


def _assignments(file: str, text: str) -> Iterator[tuple[str, str]]:
    yield from _QUOTED.findall(text)
    if not file.endswith(_CODE):
        yield from _BARE.findall(text)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
