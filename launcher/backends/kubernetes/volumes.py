"""The volumes of a profile: what an entry may say, which one holds a folder, and what they are in a pod."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from launcher.backends.kubernetes.quantities import parse_size
from launcher.backends.kubernetes.syntax import SUBDOMAIN_RULE, is_absolute, is_subdomain
from launcher.errors import Problem, nearest
from launcher.tree import Tree

FILES_MOUNT = "/etc/llavajob"
"""Where each pod finds the plan of its run."""
SHM_MOUNT = "/dev/shm"
SOURCES = ("pvc", "host_path", "nfs", "empty_dir")
KEYS = ("mount", *SOURCES, "sub_path", "read_only")
_NFS = re.compile(r"[^\s/:]+:(/.*)")


def covering_volume(settings: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """Return the entry below ``volumes`` that keeps what pods write to a folder, or None.

    A folder belongs to the innermost mount above it; one that ends with its pod or cannot be written keeps nothing.
    """
    above = [entry for entry in settings["volumes"] if path.is_relative_to(entry["mount"])]
    if not above:
        return None
    entry: dict[str, Any] = max(above, key=lambda volume: len(PurePosixPath(volume["mount"]).parts))
    return None if "empty_dir" in entry or entry.get("read_only") else entry


def volume_source(entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry is among a pod's volumes, without its name."""
    if "pvc" in entry:
        return {"persistentVolumeClaim": {"claimName": entry["pvc"]}}
    if "host_path" in entry:
        # With a type, a folder that the node lacks is named in an event and not made by root.
        return {"hostPath": {"path": entry["host_path"], "type": "Directory"}}
    if "nfs" in entry:
        server, _, path = entry["nfs"].partition(":")
        return {"nfs": {"server": server, "path": path}}
    limit = entry["empty_dir"]
    return {"emptyDir": {} if limit is True else {"sizeLimit": limit}}


def volume_mount(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry is among a container's mounts."""
    mount: dict[str, Any] = {"name": name, "mountPath": entry["mount"]}
    if entry.get("sub_path"):
        mount["subPath"] = entry["sub_path"]
    if entry.get("read_only"):
        mount["readOnly"] = True
    return mount


def volume_problems(tree: Tree) -> list[Problem]:
    """List what is wrong with the entries below ``volumes``."""
    found, entries = [], tree.get(("volumes",))
    seen: set[str] = set()
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        if not isinstance(entry, dict):
            continue
        name, origin = f"kubernetes.volumes.{number}", tree.origin(("volumes", str(number)))
        found += [Problem(origin, f"{name}{text}") for text in (*_key_errors(entry), *_value_errors(entry))]
        if isinstance(entry.get("mount"), str) and entry["mount"] in seen:
            found.append(Problem(origin, f"{name}: {entry['mount']} is the mount of another volume already"))
        seen.add(str(entry.get("mount")))
    return found


def _key_errors(entry: dict[str, Any]) -> list[str]:
    wrong = [key for key in entry if key not in KEYS]
    texts = [f": unknown key '{key}'{nearest(key, KEYS) or '; allowed: ' + ', '.join(KEYS)}" for key in wrong]
    given = [key for key in SOURCES if key in entry]
    if len(given) != 1:
        texts.append(f" names {' and '.join(given) or 'no volume'}; exactly one of {', '.join(SOURCES)} is needed")
    return texts


def _value_errors(entry: dict[str, Any]) -> list[str]:
    checks = {
        "pvc": (is_subdomain, f"the name of a claim is needed: {SUBDOMAIN_RULE}"),
        "host_path": (is_absolute, "a full path on the nodes is needed, such as /data"),
        "nfs": (_is_nfs, "server:/path is needed, such as nfs.example.org:/export"),
        "sub_path": (_is_below, "a path below the volume's top is needed, such as runs/mine"),
    }
    texts = [_mount_error(entry.get("mount"))]
    for key, (fits, wanted) in checks.items():
        if key in entry and not (isinstance(entry[key], str) and fits(entry[key])):
            texts.append(f".{key} is {entry[key]!r}; {wanted}")
    if not isinstance(entry.get("read_only", False), bool):
        texts.append(f".read_only is {entry['read_only']!r}; true or false is needed")
    if "empty_dir" in entry:
        texts.append(_empty_dir_error(entry["empty_dir"]))
    return [text for text in texts if text]


def _mount_error(mount: Any) -> str:
    if mount is None:
        return ": 'mount' is missing: the folder in pods where it is seen"
    if not isinstance(mount, str) or not is_absolute(mount):
        return f".mount is {mount!r}; a full path in pods is needed, such as /data"
    if mount == SHM_MOUNT:
        return f".mount: {SHM_MOUNT} has a key of its own: kubernetes.shm"
    if PurePosixPath(mount).is_relative_to(FILES_MOUNT) or PurePosixPath(FILES_MOUNT).is_relative_to(mount):
        return f".mount is {mount}; llavajob keeps its own files in {FILES_MOUNT}"
    return ""


def _empty_dir_error(value: Any) -> str:
    if value is True:
        return ""
    try:
        parse_size(value if isinstance(value, str) else "")
    except ValueError as error:
        return f".empty_dir is {value!r}; true or the most that it may hold: {error}"
    return ""


def _is_nfs(text: str) -> bool:
    match = _NFS.fullmatch(text)
    return match is not None and (match[1] == "/" or is_absolute(match[1]))


def _is_below(text: str) -> bool:
    return bool(text) and not text.startswith("/") and ".." not in text.split("/")
