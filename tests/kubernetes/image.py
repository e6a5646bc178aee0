"""The one image of the bed, and pods that run this host's Python in it.

There is no registry to pull from. The image has one layer: busybox, and the users that a program looks for. Everything
else a pod needs is mounted from the host: /usr, and the folders that Python, its environment and this project lie in.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMAGE = "localhost/bed:1"
# Neither root nor a user of the host; its pods write only to what belongs to it (see ``give``).
USER = 64000
SECURITY = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER}
REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("dev", "etc", "home", "mnt", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "var", "var/tmp")
OPEN = ("home", "tmp", "var/tmp")
SHARED_WITH_USR = ("bin", "lib", "lib64", "sbin")
FILES = {
    "etc/passwd": f"root:x:0:0::/root:/bin/sh\nbed:x:{USER}:{USER}::/home:/bin/sh\n",
    "etc/group": f"root:x:0:\nbed:x:{USER}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
# What holds a pod's namespaces while its containers come and go.
PAUSE = ("/usr/bin/busybox", "sleep", str(10**9))
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def entry(name: str, **attributes: Any) -> tarfile.TarInfo:
    """A member of an archive that is the same whenever it is made."""
    member = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    return member


def add_file(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    """Add a file to an archive."""
    archive.addfile(entry(name, size=len(data), mode=mode), io.BytesIO(data))


def layer(busybox: Path) -> bytes:
    """The image's file system."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in FOLDERS:
            mode = 0o1777 if name in OPEN else 0o755
            archive.addfile(entry(name, type=tarfile.DIRTYPE, mode=mode))
        for name in SHARED_WITH_USR:
            archive.addfile(entry(name, type=tarfile.SYMTYPE, linkname=f"usr/{name}"))
        archive.addfile(entry("usr/bin/sh", type=tarfile.SYMTYPE, linkname="busybox"))
        add_file(archive, "usr/bin/busybox", busybox.read_bytes(), 0o755)
        for name, text in FILES.items():
            add_file(archive, name, text.encode())
    return buffer.getvalue()


def write_image(busybox: Path, place: Path) -> None:
    """Write the image as an archive for ``ctr images import``."""
    content = layer(busybox)
    configuration = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Cmd": PAUSE, "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
        "history": [],
    }
    index = [{"Config": "configuration.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(place, "w") as archive:
        add_file(archive, "configuration.json", json.dumps(configuration).encode())
        add_file(archive, "layer.tar", content)
        add_file(archive, "manifest.json", json.dumps(index).encode())


def host_folders() -> list[Path]:
    """Where this host's programs and libraries, Python, its environment and this project lie."""
    named = [Path(place) for place in ("/usr", sys.base_prefix, sys.prefix, REPOSITORY)]
    wanted = {*named, *(place.resolve() for place in named)}
    return sorted(place for place in wanted if not wanted & set(place.parents))


def host_volumes(*shared: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts for pods that run this host's Python; what is shared is writable, the rest is not."""
    folders = [*host_folders(), *shared]
    volumes = [
        {"name": f"host-{n}", "hostPath": {"path": str(folder), "type": "Directory"}}
        for n, folder in enumerate(folders)
    ]
    mounts = [
        {"name": f"host-{n}", "mountPath": str(folder), "readOnly": folder not in shared}
        for n, folder in enumerate(folders)
    ]
    return volumes, mounts


def give(*folders: Path) -> None:
    """Let the pods' user write below folders of the host."""
    for folder in folders:
        for place, _, names in os.walk(folder):
            for path in (Path(place), *(Path(place) / name for name in names)):
                shutil.chown(path, USER, USER)


def pod_template(command: Sequence[str], *shared: Path, name: str = "pytorch", **container: Any) -> dict[str, Any]:
    """The template of a pod with one container that runs a command with this host's Python."""
    volumes, mounts = host_volumes(*shared)
    return {
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "securityContext": SECURITY,
            "containers": [
                {
                    "name": name,
                    "image": IMAGE,
                    "imagePullPolicy": "Never",
                    "command": [*command],
                    "volumeMounts": mounts,
                    **container,
                }
            ],
            "volumes": volumes,
        }
    }
