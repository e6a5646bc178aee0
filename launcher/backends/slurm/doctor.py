"""Does this profile fit this cluster? Asked of Slurm's own tools, and of one node."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.backends.slurm.arrays import largest_array
from launcher.backends.slurm.client import ask, plain_words
from launcher.backends.slurm.client_environment import job_environment
from launcher.backends.slurm.gres import count_gpus, in_words
from launcher.backends.slurm.settings import (
    gpus_per_node,
    parse_gpus,
    parse_gres,
    parse_memory_mb,
    parse_time_s,
    slurm_time,
)
from launcher.backends.slurm.setup_lines import BEGIN, render_setup, setup_lines
from launcher.backends.slurm.setup_log import silent_module_error, why_setup_failed
from launcher.doctor import Finding
from launcher.errors import BackendError, nearest
from launcher.file_modes import make_root
from launcher.profiles import Profile
from launcher.user import user_name

_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sacct")
_NODE_WAIT_S = 30
_PACKAGES = ("launcher", "llava", "submitit", "torch", "transformers", "peft", "bitsandbytes", "deepspeed")


def examine(profile: Profile) -> Iterator[Finding]:
    """Look at everything in order; what depends on something missing is left out."""
    lacking = [name for name in _COMMANDS if shutil.which(name) is None]
    if lacking:
        cure = "Run this on a login node, or load the site's Slurm module."
        yield Finding("commands", f"{', '.join(lacking)} not on PATH", False, cure)
        return
    try:
        yield Finding("commands", ask("sbatch", "--version").strip())
        yield Finding("controller", ask("scontrol", "ping").strip().splitlines()[0])
        config = _pairs(ask("scontrol", "show", "config"), " = ")
    except BackendError as error:
        yield Finding("controller", error.message, False, "Nothing can be sent until it answers. Try again, or sinfo.")
        return
    yield from _accounting(profile)
    yield from _partition(profile)
    yield from _arrays(profile, config)
    yield from _preemption(config)
    yield from _node(profile)


def _pairs(text: str, separator: str) -> dict[str, str]:
    rows = (line.split(separator, 1) for line in text.splitlines() if separator in line)
    return {name.strip(): value.strip() for name, value in rows}


def _accounting(profile: Profile) -> Iterator[Finding]:
    try:
        ask("sacct", "-X", "--noheader", "--jobs=1")
    except BackendError as error:
        seen = f"off ({error.message}); states come from squeue and the runs' own files"
        yield Finding("accounting", seen, None)
        return
    yield Finding("accounting", "on")
    form = "format=account%80"
    text = ask("sacctmgr", "--noheader", "show", "associations", f"user={user_name()}", form)
    accounts = sorted(set(text.split()))
    wanted = profile.settings["account"]
    if wanted and accounts and wanted not in accounts:
        cure = f"Set slurm.account to one of yours{nearest(wanted, accounts)}."
        yield Finding("account", f"{wanted} is none of yours ({', '.join(accounts)})", False, cure)
    elif accounts:
        default = "" if wanted else "; none is set, so Slurm takes your default"
        yield Finding("account", (wanted or ", ".join(accounts)) + default)


def _partition(profile: Profile) -> Iterator[Finding]:
    rows = [line.split("|") for line in ask("sinfo", "--noheader", "-o", "%P|%a|%l|%D|%c|%m|%G").splitlines()]
    names = sorted({row[0].rstrip("*") for row in rows})
    default = next((row[0][:-1] for row in rows if row[0].endswith("*")), "")
    given = [name.strip() for name in profile.settings["partition"].split(",") if name.strip()]
    # Slurm refuses a job that names a partition which is not there, whatever the others are.
    wanted = next((name for name in given if name not in names), (given or [default])[0])
    mine = [row for row in rows if row[0].rstrip("*") == wanted]
    if not mine:
        seen = f"there is none named {wanted}" if wanted else "none is set and the cluster has no default"
        cure = f"Set slurm.partition to one of {', '.join(names)}{nearest(wanted, names)}"
        yield Finding("partition", seen, False, cure)
        return
    state, limit, nodes = mine[0][1], mine[0][2], sum(int(row[3]) for row in mine)
    seen = f"{wanted}{' (the default)' if wanted == default else ''}, {nodes} nodes, time limit {limit}"
    yield Finding("partition", f"{seen}, {state}", state == "up", "" if state == "up" else "Wait, or take another.")
    yield from _time(profile, limit)
    yield from _node_size(profile, mine)


def _time(profile: Profile, limit: str) -> Iterator[Finding]:
    wanted = str(profile.settings["time"])
    if not wanted:
        yield Finding("time", "none is set, so the partition's default holds", None, "Set slurm.time, such as 12h.")
        return
    most_s, asked_s = None if limit == "infinite" else parse_time_s(limit), parse_time_s(wanted)
    if most_s is not None and (asked_s is None or asked_s > most_s):
        cure = f"Set slurm.time to {limit} or less; a job that reaches it is requeued and goes on."
        yield Finding("time", f"{slurm_time(wanted)} is longer than the partition allows ({limit})", False, cure)
    else:
        yield Finding("time", slurm_time(wanted))


def _node_size(profile: Profile, rows: list[list[str]]) -> Iterator[Finding]:
    place = profile.settings
    if not place["cpus"]:
        seen = "none are set: Slurm gives each node's task one, unless the site adds some for each GPU"
        yield Finding("cpus", seen, None, "Set slurm.cpus to what each node is to give.")
    cpus, memory = (max(int(row[n].rstrip("+")) for row in rows) for n in (4, 5))
    if place["cpus"] and place["cpus"] > cpus:
        yield Finding("cpus", f"{place['cpus']} asked for, nodes have {cpus}", False, f"Set slurm.cpus to {cpus}.")
    if place["mem"] and parse_memory_mb(str(place["mem"])) > memory:
        cure = f"Set slurm.mem to {memory}M or less."
        yield Finding("mem", f"{place['mem']} asked for, nodes have {memory}M", False, cure)
    yield _gpus(profile, [count_gpus(row[6]) for row in rows])


def _gpus(profile: Profile, offered: list[dict[str, int]]) -> Finding:
    """Whether nodes have the GPUs that each node is to give.

    Args:
        profile: what is asked for.
        offered: GPUs by type, of each kind of node.
    """
    place = profile.settings
    asked = gpus_per_node(place) or profile.values.get(("resources", "gpus_per_node")) or 0
    if place["gres"]:
        kind = parse_gres(place["gres"])[0].partition(":")[2]
    else:
        kind = parse_gpus(str(place["gpus"]))[0] if place["gpus"] else ""
    seen = "; ".join(sorted({in_words(counts) for counts in offered if counts}))
    if kind:
        fits = any(counts.get(kind, 0) >= max(1, asked) for counts in offered)
    else:
        fits = any(sum(counts.values()) >= asked for counts in offered)
    if fits:
        return Finding("gpus", seen or "nodes have none", True if seen else None)
    seen = f"{place['gpus'] or place['gres'] or asked} asked for, nodes have {seen or 'none'}"
    return Finding("gpus", seen, False, "Set slurm.gpus or slurm.gres to what nodes have; CPU: --gpus-per-node 0.")


def _arrays(profile: Profile, config: dict[str, str]) -> Iterator[Finding]:
    """Each shard of an evaluation is a member of an array."""
    most = largest_array(config)
    if most is None:
        return
    asked = profile.values.get(("eval", "shards")) or 0
    if asked > most:
        cure = f"Set eval.shards below values: to {most} or fewer."
        yield Finding("arrays", f"{asked} shards asked for, an array takes {most} (MaxArraySize)", False, cure)
    else:
        yield Finding("arrays", f"up to {most} shards in an evaluation (MaxArraySize)")


def _preemption(config: dict[str, str]) -> Iterator[Finding]:
    kind, mode = config.get("PreemptType", ""), config.get("PreemptMode", "OFF")
    if "none" in kind or mode == "OFF":
        yield Finding("preemption", "off")
    else:
        seen = f"{mode} ({kind.removeprefix('preempt/')}); a job that is told saves, and is requeued"
        yield Finding("preemption", seen)
    kill_wait = config.get("KillWait", "")
    seen = f"{kill_wait} between scancel's SIGTERM and SIGKILL; llavajob cancel saves first and waits longer"
    yield Finding("KillWait", seen, None)


def _node(profile: Profile) -> Iterator[Finding]:
    """Start one short task: what a node sees of the runs folder, the Python and its packages."""
    make_root(profile.runs)
    marker = profile.runs / f".doctor-{uuid.uuid4().hex[:8]}"
    marker.write_text("seen", encoding="utf-8")
    try:
        report = _ask_node(profile, marker)
    except BackendError as error:
        yield Finding("node", error.message, None if "no node" in error.message else False, error.hint)
        return
    finally:
        marker.unlink(missing_ok=True)
    yield Finding("node", f"{report['host']} ran a task, Python {report['python']}")
    if report["marker"]:
        yield Finding("shared folder", f"{profile.runs} is the same on the node")
    else:
        cure = "Set runs: in the profile to a folder on the file system that all nodes share."
        yield Finding("shared folder", f"the node does not see {profile.runs} as it is here", False, cure)
    absent = [name for name in _PACKAGES if name not in report["packages"]]
    if absent:
        cure = f"In the environment that all nodes see: {profile.python} -m pip install 'llavajob[train]'"
        yield Finding("packages", f"missing on the node: {', '.join(absent)}", False, cure)
    else:
        yield Finding("packages", "all there on the node")
    if report["gpus"]:
        yield Finding("GPU", report["gpus"][0])
    if setup_lines(profile.settings):
        yield _set_up(profile)


def _set_up(profile: Profile) -> Finding:
    """Run the set-up lines on a node, as a job's batch script does before anything else."""
    place = profile.settings
    # With an exit code and a line's number behind it, it makes the script say them and end.
    failed = "printf 'echo FAILED %s %s; exit 1'"
    script = "\n".join([*render_setup(place, failed), "echo FINE"])
    try:
        done = _run_task(place, [], ["bash", "-c", script])
    except BackendError as error:
        return Finding("set-up", error.message, None, error.hint)
    said = [line.split() for line in done.stdout.splitlines()]
    if ["FINE"] in said:
        silent = silent_module_error(done.stderr, len(place["modules"]))
        return Finding("set-up", silent or "modules and set-up lines ran on the node", not silent)
    if BEGIN not in done.stderr:
        return Finding("set-up", f"a task on a node failed: {plain_words(done.stderr)}", None, "Try again.")
    log = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("srun: "))
    failures = [words for words in said if words[:1] == ["FAILED"] and len(words) == 3]
    code, number = (int(failures[0][1]), int(failures[0][2])) if failures else (done.returncode, 0)
    cure = "Mend slurm.modules or slurm.setup; a line that may fail takes '|| true' at its end."
    return Finding("set-up", why_setup_failed(log, setup_lines(place), code, number), False, cure)


_LOOK = """
import json, os, platform, socket, subprocess, sys
from importlib.util import find_spec
packages = [name for name in sys.argv[2:] if find_spec(name)]
try:
    gpus = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.splitlines()
except OSError:
    gpus = []
host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
print("LOOKED" + json.dumps(dict(host=host, python=platform.python_version(), marker=os.path.exists(sys.argv[1]),
                                 packages=packages, gpus=gpus)))
"""


def _run_task(place: dict[str, Any], arguments: list[str], task: list[str]) -> subprocess.CompletedProcess[str]:
    """Run one task on a node with as little as possible of what the profile asks for.

    Args:
        place: what the profile says to Slurm, complete.
        arguments: more for srun.
        task: the command.

    Raises:
        BackendError: it does not come back.
    """
    options = [f"--{name}={place[name]}" for name in ("partition", "account", "qos", "constraint", "reservation")
               if place[name]]  # fmt: skip
    command = [
        "srun", "--nodes=1", "--ntasks=1", "--time=2", f"--immediate={_NODE_WAIT_S}", "--job-name=llavajob-doctor",
        *options, *arguments, *task,
    ]  # fmt: skip
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_NODE_WAIT_S + 60, check=False,
            env=job_environment(), stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BackendError("a task on a node did not come back", "Look at the nodes: sinfo -R") from None


def _ask_node(profile: Profile, marker: Path) -> dict[str, Any]:
    place = profile.settings
    gpus = ["--gpus=1"] if gpus_per_node(place) else []
    task = [profile.python, "-c", _LOOK, str(marker), *_PACKAGES]
    done = _run_task(place, [*gpus, *shlex.split(place["container"])], task)
    line = next((line[6:] for line in done.stdout.splitlines() if line.startswith("LOOKED")), None)
    if line is not None:
        return dict(json.loads(line))
    words = plain_words(done.stderr)
    if "immediate" in words.lower() or "requested nodes are busy" in words.lower():
        hint = "Python, packages and the shared folder were not checked. Try again when a node is free."
        raise BackendError(f"no node was free within {_NODE_WAIT_S} s", hint)
    raise BackendError(f"a task on a node failed: {words}", f"It ran {profile.python}; set python: in the profile.")
