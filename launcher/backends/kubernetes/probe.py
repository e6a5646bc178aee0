"""One short-lived pod of a profile: does its image come, its volumes mount, its Python have all that runs need?"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.backends.kubernetes.client import Client, Object
from launcher.backends.kubernetes.events import list_events
from launcher.backends.kubernetes.objects import job
from launcher.backends.kubernetes.settings import runs_in_pods
from launcher.backends.kubernetes.sharing import is_other_user, not_shared, share_folder
from launcher.backends.kubernetes.template import literal
from launcher.backends.kubernetes.volumes import FILES_MOUNT
from launcher.backends.kubernetes.waiting import QUEUED, TROUBLE, why_pod_waits
from launcher.backends.kubernetes.words import why_ended
from launcher.doctor import Finding
from launcher.errors import BackendError
from launcher.file_modes import make_root, restrict_run_folder
from launcher.patience import insist
from launcher.plan import Plan, Step
from launcher.profiles import Profile

_PROBE_S = 120.0
_TROUBLE_S = 15.0
"""So long a reason that somebody must cure may last: kubelets try again, and a volume may be late."""
_QUEUED_S = 10.0
"""So long a pod waits for a free GPU before it looks without one."""
_POLL_S = 0.3
_LITTLE_GB = 50
_PACKAGES = ("launcher", "llava", "kubernetes", "torch", "transformers", "peft", "bitsandbytes", "deepspeed")
_SIZE = {"cpu": "500m", "memory": "2Gi", "shm": "", "queue": ""}
"""What the probe asks for, in place of what a training does."""

_LOOK = """
import importlib, json, os, platform, shutil, sys, tempfile
from importlib.util import find_spec
runs, trial, packages = sys.argv[1], sys.argv[2], sys.argv[3:]
seen = {}
def look(name, what):
    try:
        seen[name] = what()
    except BaseException as error:
        seen[name + "_error"] = f"{type(error).__name__}: {error}"
def free():
    # As a run does: in its own folder, which submit has made where it sees it, else the pod makes it.
    if not trial:
        os.makedirs(runs, exist_ok=True)
    place = trial or tempfile.mkdtemp(dir=runs, prefix=".doctor-")
    try:
        below = tempfile.mkdtemp(dir=place)
        try:
            for kept in (place, below):
                tempfile.NamedTemporaryFile(dir=kept).close()
        finally:
            os.rmdir(below)
    finally:
        if not trial:
            os.rmdir(place)
    return shutil.disk_usage(runs).free
def gpus():
    torch = importlib.import_module("torch")
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {"version": torch.__version__, "gpus": names}
look("python", platform.python_version)
look("user", os.getuid)
look("packages", lambda: [name for name in packages if find_spec(name)])
look("launcher", lambda: importlib.import_module("launcher").__version__)
look("modules", lambda: [str(importlib.import_module("launcher.backends.kubernetes." + n)) for n in ("pod", "conduct")])
look("free", free)
look("trial", lambda: bool(trial) and os.path.isdir(trial))
look("torch", gpus)
print("LOOKED" + json.dumps(seen), flush=True)
"""


class _Waits(BackendError):
    """The probe's pod does not start, for want of a free place."""


def trial_plan(client: Client, profile: Profile, gpus: int) -> Plan:
    """A plan with one small task, in a run that nobody has: what profiles are tried with."""
    name = f"llavajob-doctor-{secrets.token_hex(4)}"
    settings = {**profile.settings, **_SIZE, "namespace": client.namespace}
    folder = runs_in_pods(profile.runs, profile.settings)[0] / name
    step = Step("probe", "", "task", 1, 1, gpus, 1, 1, None, (profile.python,), dict(profile.environment), 0, 1)
    return Plan(name, secrets.token_hex(8), folder, profile.backend, settings, (step,))


def examine_pod(client: Client, profile: Profile) -> Iterator[Finding]:
    """Run a pod as a training would be, but small, and tell what it saw; nothing of it is left."""
    wanted = profile.values.get(("resources", "gpus_per_node")) != 0 and _offers_gpus(client, profile)
    trial = _trial_folder(profile)
    start = time.monotonic()
    try:
        try:
            report = _report(client, profile, int(wanted), trial)
        except _Waits as error:
            if not wanted:
                raise
            yield Finding("GPU", f"none was to be had within {_QUEUED_S:.0f} s ({error.message})", None)
            wanted = False
            report = _report(client, profile, 0, trial)
    except _Waits as error:
        yield Finding("pod", error.message, None, "Image, volumes and packages were not looked at. Try again later.")
        return
    finally:
        if trial:
            _remove_trial_folder(profile.runs / trial)
    seen = f"started and looked in {time.monotonic() - start:.0f} s; Python {report.get('python')}"
    yield Finding("pod", f"{seen}, user {report.get('user')}")
    yield from _runs(profile, report, trial)
    yield from _packages(profile, report)
    yield from _torch(report, wanted)


def _offers_gpus(client: Client, profile: Profile) -> bool:
    """Whether there are GPUs to ask for, as far as can be seen."""
    try:
        nodes = client.list("Node")
    except BackendError:
        return True
    resource = profile.settings["gpu_resource"]
    return any(((node.get("status") or {}).get("allocatable") or {}).get(resource, "0") != "0" for node in nodes)


def _trial_folder(profile: Profile) -> str:
    """Make a folder as submit makes a run's, where the runs' folder is the same here and in pods; return its name."""
    if not runs_in_pods(profile.runs, profile.settings)[1]:
        return ""
    name = f".doctor-{secrets.token_hex(4)}"
    try:
        make_root(profile.runs)
        (profile.runs / name).mkdir()
        if profile.private_runs:
            restrict_run_folder(profile.runs / name)
        share_folder(profile.runs / name, profile.settings)
    except OSError:
        return ""
    return name


def _remove_trial_folder(folder: Path) -> None:
    """Remove the folder and what submit would have made in it."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            entry.rmdir() if entry.is_dir() else entry.unlink()
        folder.rmdir()


# The pod


def _report(client: Client, profile: Profile, gpus: int, trial: str) -> dict[str, Any]:
    plan = trial_plan(client, profile, gpus)
    pod = _pod(plan, str(plan.folder.parent), str(plan.folder.parent / trial) if trial else "")
    name = str(pod["metadata"]["name"])
    try:
        client.create_once(pod, 10.0, pause_s=1.0)
        ended = _await_end(client, name)
        text = (client.pod_log(name, _container(pod)["name"]) or b"").decode("utf-8", "replace")
    finally:
        # Also when it is not sure that it is there, and when somebody presses Ctrl-C; it ends by itself otherwise.
        with contextlib.suppress(BackendError):
            insist(lambda: client.delete("Pod", name, foreground=False, grace_s=0), 10.0, pause_s=1.0)
    line = next((line[6:] for line in text.splitlines() if line.startswith("LOOKED")), None)
    if line is not None:
        return dict(json.loads(line))
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    words = why_ended([ended]).partition(": ")[2] or "it printed nothing"
    hint = f"It ran {profile.python} of the image: python and kubernetes.image in the profile. {last}".strip()
    raise BackendError(f"a pod of this profile failed: {words}", hint)


def _pod(plan: Plan, runs: str, trial: str) -> Object:
    """The pod of a task, without what belongs to a run."""
    template = job(plan, plan.steps[0])["spec"]["template"]
    spec = template["spec"]
    container = _container({"spec": spec})
    container["command"] = [plan.steps[0].command[0], "-c", *map(literal, (_LOOK, runs, trial, *_PACKAGES))]
    container["volumeMounts"] = [m for m in container["volumeMounts"] if m["mountPath"] != FILES_MOUNT]
    used = {mount["name"] for one in spec["containers"] for mount in one.get("volumeMounts") or ()}
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] in used]
    spec["restartPolicy"], spec["terminationGracePeriodSeconds"] = "Never", 1
    spec["activeDeadlineSeconds"] = int(2 * _PROBE_S)
    meta = {**template["metadata"], "name": plan.run, "namespace": plan.settings["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def _container(pod: Object) -> Object:
    found: Object = next(one for one in pod["spec"]["containers"] if one["name"] == "llavajob")
    return found


def _await_end(client: Client, name: str) -> Object:
    """Wait until the pod has ended; return it.

    Raises:
        _Waits: there is no place for it now.
        BackendError: it does not start, for a reason that somebody must cure, or it takes too long.
    """
    deadline, since, last = time.monotonic() + _PROBE_S, time.monotonic(), (-1, "")
    while time.monotonic() < deadline:
        found = client.get("Pod", name)
        if found is None:
            raise BackendError("the pod that was to look was deleted by somebody else", "Try again.")
        if (found.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return found
        reason = why_pod_waits(found, list_events(client, f"involvedObject.name={name}")) or (-1, "")
        if reason[0] != last[0]:
            since = time.monotonic()
        last = reason
        waited_s = time.monotonic() - since
        if last[0] == QUEUED and waited_s > _QUEUED_S:
            raise _Waits(f"a pod of this profile waits: {last[1]}")
        if last[0] == TROUBLE and waited_s > _TROUBLE_S:
            raise BackendError(f"a pod of this profile does not start: {last[1]}", "Put that right, and look again.")
        time.sleep(_POLL_S)
    hint = "Where a node fetches a large image for the first time, look again in some minutes."
    raise BackendError(f"a pod of this profile took more than {_PROBE_S:.0f} s: {last[1] or 'it runs'}", hint)


# What it saw


def _runs(profile: Profile, report: dict[str, Any], trial: str) -> Iterator[Finding]:
    folder, _ = runs_in_pods(profile.runs, profile.settings)
    if "free" not in report and (report.get("trial") or not trial):
        cure = "Give the volume to the group of kubernetes.run_as.fs_group, or set run_as to a user that may write."
        if trial and is_other_user(profile.settings):
            cure = f"{not_shared(profile.runs, profile.settings).partition('. ')[2]}."
        seen = f"user {report.get('user')} cannot write to {folder}: {report.get('free_error')}"
        yield Finding("runs in pods", seen, False, cure)
        return
    if trial and not report.get("trial"):
        cure = "Set runs: in the profile to the folder that pods see, or kubernetes.runs to what it is called there."
        yield Finding("runs in pods", f"pods do not see {folder} as it is here", False, cure)
        return
    free_gb = report["free"] / 1e9
    same = ", the same as here" if trial else ""
    cure = "A checkpoint of a 7B model takes 14 to 84 GB." if free_gb < _LITTLE_GB else ""
    yield Finding("runs in pods", f"{folder}{same}, {free_gb:,.0f} GB free", free_gb >= _LITTLE_GB or None, cure)


def _packages(profile: Profile, report: dict[str, Any]) -> Iterator[Finding]:
    absent = [name for name in _PACKAGES if name not in report.get("packages", ())]
    if absent:
        own = profile.code == "snapshot" and set(absent) <= {"launcher", "llava"}
        cure = "A copy of the code is sent with each run." if own else "Build the image as the README shows."
        yield Finding("packages", f"missing in the image: {', '.join(absent)}", None if own else False, cure)
        if "launcher" in absent:
            return
    else:
        yield Finding("packages", "all there in the image")
    if "modules" not in report:
        cure = "The image needs llavajob with its dependencies: pip install llavajob"
        yield Finding("llavajob", f"cannot run pods: {report.get('modules_error')}", False, cure)
    elif report.get("launcher") != __version__:
        cure = "What is sent from here may not be understood there. Build the image anew."
        yield Finding("llavajob", f"{report.get('launcher')} in the image, {__version__} here", False, cure)
    else:
        yield Finding("llavajob", f"{__version__} in the image, as here")


def _torch(report: dict[str, Any], with_gpu: bool) -> Iterator[Finding]:
    if "torch" not in report:
        yield Finding("torch", f"cannot be imported: {report.get('torch_error')}", False, "Build the image anew.")
        return
    found = report["torch"]
    yield Finding("torch", f"{found['version']}, GPUs seen: {', '.join(found['gpus']) or 'none'}")
    if with_gpu and not found["gpus"]:
        cure = "The image needs a torch for CUDA, and the node a driver that it knows."
        yield Finding("GPU", "the pod had one, and torch does not see it", False, cure)
