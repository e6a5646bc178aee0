"""Which paths pods reach: those below a volume of the profile or of its base objects, and what the image holds."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from launcher.backends.kubernetes.bases import CONTAINERS, KINDS, base_object
from launcher.backends.kubernetes.settings import runs_in_pods
from launcher.backends.kubernetes.volumes import FILES_MOUNT, SHM_MOUNT, covering_volume
from launcher.profiles import Profile, default_runs_root
from launcher.reach import Reach

_TRAINING = ("training", "evaluation")
"""The base objects whose pods read inputs."""


class PodReach(Reach):
    """What the pods of a profile see: never the submitter's own files, unless a volume holds them."""

    def __init__(self, profile: Profile) -> None:
        self._settings = profile.settings
        self._runs = runs_in_pods(profile.runs, profile.settings)[0]
        homes = [_home(), default_runs_root(), profile.runs]
        self._homes = [folder for folder in homes if folder is not None and folder != Path("/")]
        self._image = [PurePosixPath(folder) for folder in self._settings["image_folders"]]
        # What a base mounts at the same place as the profile gives way to it, so all of both may be there.
        self._bases = [mount for name in _TRAINING for mount in _base_mounts(name, self._settings)]

    def unseen(self, path: Path) -> str:
        if self._is_empty(path):
            return "is below an empty_dir volume of the profile, which is empty in each new pod"
        if self._is_mounted(path) or not self._is_the_submitters(path):
            return ""
        return "is below no volume of the profile: pods do not see it"

    def lost(self, path: Path) -> str:
        if self._is_empty(path) or not self._is_mounted(path):
            return "is below no volume that outlasts the pods: what they write there is lost with them"
        return ""

    def doubt(self, path: Path) -> str:
        if self._is_empty(path) or self._is_mounted(path) or self._is_in_image(path):
            return ""
        return "is below no volume of the profile: the image must hold it (kubernetes.image_folders says that it does)"

    def elsewhere(self, path: Path) -> str:
        """The same name on the volume that keeps the runs."""
        holder = covering_volume(self._settings, self._runs)
        return str(PurePosixPath(holder["mount"] if holder else self._runs) / path.name)

    def _is_empty(self, path: Path) -> bool:
        """Whether the innermost volume of the profile above a path is new with each pod."""
        above = [entry for entry in self._settings["volumes"] if path.is_relative_to(entry["mount"])]
        inner: dict[str, Any] = max(above, key=lambda entry: len(PurePosixPath(entry["mount"]).parts), default={})
        return "empty_dir" in inner

    def _is_mounted(self, path: Path) -> bool:
        mounts = [str(entry["mount"]) for entry in self._settings["volumes"]]
        return any(path.is_relative_to(mount) for mount in [*mounts, *self._bases])

    def _is_in_image(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self._image)

    def _is_the_submitters(self, path: Path) -> bool:
        """Whether a path is this machine's: below home or its runs, or there. Others may be the image's."""
        if self._is_in_image(path):
            return False
        if any(path.is_relative_to(folder) for folder in self._homes):
            return True
        try:
            return path.exists()
        except OSError:
            # What may not even be looked at is there, and somebody's of this machine.
            return True


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _base_mounts(name: str, settings: dict[str, Any]) -> list[str]:
    """Where a base object mounts volumes of its own in the container that runs llavajob."""
    spec = base_object(name, settings)["spec"]
    replicas = spec.get("pytorchReplicaSpecs", {"": spec})
    mounts = []
    for replica in replicas.values():
        for container in replica["template"]["spec"]["containers"]:
            if container["name"] == CONTAINERS[KINDS[name]]:
                mounts += [str(mount["mountPath"]) for mount in container.get("volumeMounts") or ()]
    return [mount for mount in mounts if mount not in (SHM_MOUNT, FILES_MOUNT)]
