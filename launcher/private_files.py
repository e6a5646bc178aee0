"""Files that are not copied along with code: those that git ignores, and those that look like keys."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

_KEY_FILES = (
    ".env", ".env.*", "*.env", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.ppk", "*.kdbx",
    "*.gpg", "*.asc", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "credentials", "credentials.*", "*_credentials",
    "*credentials*.json", "client_secret*.json", "service-account*.json", "service_account*.json", ".netrc", "_netrc",
    ".npmrc", ".yarnrc", ".pypirc", ".git-credentials", ".htpasswd", ".pgpass", ".my.cnf", ".dockercfg",
    ".dockerconfigjson", ".boto", ".s3cfg", "kubeconfig", "kubeconfig.*", "*.kubeconfig", "secrets", "secrets.*",
    "secret.*", "*.secret", "*.token", "token", "token.txt", ".token", ".huggingface_token", ".vault-token",
)  # fmt: skip
_KEY_FOLDERS = frozenset({".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".gcloud"})
_TEMPLATES = ("*.example", "*.sample", "*.template", "*.dist", "*.pub", "*.py")
"""Files that show how a key file is written, public keys, and code."""
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-\d")
_MOST_BYTES = 1 << 20


def is_key_file(name: str) -> bool:
    """Tell by its name or its folder's whether a file looks like one that holds keys."""
    path = PurePosixPath(name)
    if _KEY_FOLDERS & set(path.parts[:-1]):
        return True
    last = path.name.lower()
    if any(fnmatchcase(last, pattern) for pattern in _TEMPLATES):
        return False
    return any(fnmatchcase(last, pattern) for pattern in _KEY_FILES)


def holds_private_key(path: Path) -> bool:
    """Tell whether a file holds a private key, whatever its name; what cannot be read does not."""
    try:
        with path.open("rb") as file:
            return bool(_PRIVATE_KEY.search(file.read(_MOST_BYTES)))
    except OSError:
        return False


def ignored_among(checkout: Path, names: Sequence[str]) -> set[str]:
    """Return those files that a checkout's rules ignore, tracked ones included; none outside of a checkout.

    Args:
        checkout: a folder in it.
        names: paths from there.
    """
    if not names:
        return set()
    try:
        done = subprocess.run(
            ["git", "check-ignore", "--no-index", "-z", "--stdin"], cwd=checkout, capture_output=True, timeout=30,
            check=False, input="\0".join(names).encode(errors="surrogateescape"),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return set(os.fsdecode(done.stdout).split("\0")) - {""}


def ignored_below(folder: Path) -> set[Path]:
    """Return the files and whole folders below a folder of a checkout that are not tracked because git ignores them."""
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "--directory", "-z"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return {folder / name for name in os.fsdecode(done.stdout).split("\0") if name}
