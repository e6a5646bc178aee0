"""What a profile may say to Slurm: the keys below ``slurm:``, their checks, durations and sizes in Slurm's words."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from typing import Any

from launcher.errors import Problem
from launcher.one_line import breaking_character, unencodable_character
from launcher.secret_values import SCHEMA as SECRETS
from launcher.secret_values import secret_problems
from launcher.tree import Tree


def _text(doc: str) -> dict[str, Any]:
    return {"type": "string", "default": "", "description": doc}


def _size(doc: str) -> dict[str, Any]:
    return {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1}], "default": "", "description": doc}


def _lines(doc: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}, "default": [], "description": doc}


SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "default": {},
    "description": "What sbatch is told; anything else goes below extra.",
    "properties": {
        "partition": _text("Partition, or several with commas."),
        "account": _text("Account that is charged."),
        "qos": _text("Quality of service."),
        "constraint": _text("Features that nodes must have: 'a100&nvlink'."),
        "gpus": _size("GPUs of each node: 8, a100:8, or a100 where the recipe says how many (--gpus-per-node)."),
        "gres": _text("The same as --gres wants it: gpu:a100:8, or gpu:a100 where the recipe says how many."),
        "mem": _size("Memory of each node: 480G; shards get their share of it."),
        "cpus": {
            "anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}],
            "default": None,
            "description": "CPUs of each node; shards get their share of them.",
        },
        "time": _size("Time limit of each job: 90m, 12h, 2-00:00:00; a number counts minutes."),
        "nodelist": _text("Only these nodes: node[1-4]."),
        "exclude": _text("Never these nodes: node[7,9]."),
        "exclusive": {"type": "boolean", "default": False, "description": "Share nodes with no other job."},
        "reservation": _text("Reservation to run in."),
        "comment": _text("Comment of the job."),
        "mail_user": _text("Who gets mail."),
        "mail_type": _text("When: BEGIN,END,FAIL,REQUEUE,TIME_LIMIT_80."),
        "wckey": _text("Workload characterisation key; none is sent unless it is set."),
        "modules": _lines("Modules that are loaded first, in order."),
        "setup": _lines("Shell lines that run first on the first node, after the modules."),
        "secrets": SECRETS,
        "container": _text("Arguments of srun that start a container: --container-image=... --container-mounts=..."),
        "extra": {
            "type": "object",
            "additionalProperties": {},
            "default": {},
            "description": "Any other option of sbatch by its long name: {switches: 1, nice: 100, overcommit: true}.",
        },
    },
}
OURS = ("array", "dependency", "error", "job-name", "kill-on-invalid-dep", "nodes", "no-requeue", "ntasks",
        "ntasks-per-node", "open-mode", "output", "requeue", "signal", "wrap", "chdir", "clusters", "export-file",
        "help", "parsable", "quiet", "test-only", "usage", "version", "wait")  # fmt: skip
"""Options that belong to llavajob: with other values runs would not be found, followed or started again."""

_COUNTED_BY_US = {"cpus-per-task": "cpus", "gpus": "gpus", "gpus-per-node": "gpus"}
"""Options that follow from a key of the profile, by that key."""
_OPTION = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_TEXTS = ("partition", "account", "qos", "constraint", "gres", "nodelist", "exclude", "reservation", "comment",
          "mail_user", "mail_type", "wckey", "container")  # fmt: skip
# Numbers of more digits than these are mistakes, and cost Python and Slurm more than they can carry.
_N = r"([0-9]{1,9})"
_CLOCK = re.compile(rf"(?:{_N}-)?{_N}(?::{_N})?(?::{_N})?")
_SPAN = re.compile(rf"(?:{_N}d)?(?:{_N}h)?(?:{_N}m(?:in)?)?(?:{_N}s)?")
_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)B?", re.IGNORECASE | re.ASCII)
_TYPE = r"(?:[A-Za-z][\w.-]*|[0-9]+g\.[\w.+-]+)"  # the second: parts of a GPU, such as 1g.10gb
_GPUS = re.compile(rf"(?:({_TYPE})(?::{_N})?|{_N})", re.ASCII)
_GRES = re.compile(rf"(gpu(?::{_TYPE})?)(?::{_N})?", re.ASCII)
_MEGABYTES = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024 * 1024}


def find_problems(tree: Tree) -> list[Problem]:
    """List what the schema cannot see: durations, sizes, options with a key of their own."""
    checks = {"time": parse_time_s, "mem": parse_memory_mb, "gpus": parse_gpus, "gres": parse_gres}
    found = []
    for key, check in checks.items():
        value = tree.get((key,))
        try:
            if value not in ("", None):
                check(str(value))
        except ValueError as error:
            found.append(Problem(tree.origin((key,)), f"slurm.{key} is {value!r}; {error}"))
    if tree.get(("gpus",)) and tree.get(("gres",)):
        found.append(Problem(tree.origin(("gres",)), "slurm.gres and slurm.gpus say the same; one of them is needed"))
    return [
        *found,
        *secret_problems(tree, "slurm.secrets"),
        *_text_problems(tree),
        *_line_problems(tree),
        *_extra_problems(tree),
    ]


def _text_problems(tree: Tree) -> Iterator[Problem]:
    """A line of the batch script's head ends where its value has a line break."""
    for key in _TEXTS:
        value = tree.get((key,))
        odd = breaking_character(value, allowed="\t") if isinstance(value, str) else ""
        if odd:
            yield Problem(tree.origin((key,)), f"slurm.{key} has {odd} in it; one line of text is needed")
    container = tree.get(("container",))
    try:
        shlex.split(container if isinstance(container, str) else "")
    except ValueError:
        text = f"slurm.container is {container!r}; arguments as a shell has them are needed, with every quote closed"
        yield Problem(tree.origin(("container",)), text)


def _line_problems(tree: Tree) -> Iterator[Problem]:
    for key in ("modules", "setup"):
        values = tree.get((key,))
        for number, value in enumerate(values if isinstance(values, list) else ()):
            if not isinstance(value, str):
                continue
            odd = breaking_character(value) if key == "modules" else unencodable_character(value)
            if "\r" in value:
                odd = "a carriage return"
            if odd:
                yield Problem(tree.origin((key, str(number))), f"slurm.{key}: {value!r} has {odd} in it")
            elif key == "modules" and not value.strip():
                yield Problem(tree.origin((key, str(number))), "slurm.modules: an empty name is not a module")


def _extra_problems(tree: Tree) -> Iterator[Problem]:
    extra = tree.get(("extra",))
    for name, value in extra.items() if isinstance(extra, dict) else ():
        text = _option_problem(str(name)) or _value_problem(str(name), value)
        if text:
            shown = str(name) if str(name).isprintable() else repr(str(name))
            yield Problem(tree.origin(("extra", str(name))), f"slurm.extra.{shown} {text}")


def _option_problem(name: str) -> str:
    """Say why a name below extra cannot be given to sbatch as ``--name``; empty: it can."""
    option = name.replace("_", "-")
    bare = option.strip("-")
    own = bare.replace("-", "_")
    if bare in OURS:
        return "is set by llavajob and cannot be changed"
    if own in SCHEMA["properties"]:
        return f"has a key of its own: slurm.{own}"
    if bare in _COUNTED_BY_US:
        return f"has a key of its own: slurm.{_COUNTED_BY_US[bare]}"
    if len(bare) == 1:
        return "is not the long name of an option; sbatch's long names are needed, such as nice for --nice"
    if option.startswith("-"):
        return f"has dashes that llavajob adds itself; leave them out: {bare}"
    if not _OPTION.fullmatch(option):
        return "is not the name of an option: lower-case letters, digits and hyphens are needed"
    # sbatch completes what is no whole name, as export is.
    whole = "" if option == "export" else next((one for one in OURS if one.startswith(option)), "")
    return f"abbreviates {whole}, which is set by llavajob and cannot be changed" if whole else ""


def _value_problem(name: str, value: Any) -> str:
    """Say why a value below extra cannot be given to sbatch; empty: it can."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}; a finite number is needed"
    if not (value is None or isinstance(value, bool | int | float | str)):
        kind = "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else "a date"
        return f"is {kind}; text (in quotes), a number, or true for an option without a value is needed"
    odd = breaking_character(value, allowed="\t") if isinstance(value, str) else ""
    if odd:
        return f"has {odd} in it; one line of text is needed"
    if name == "export" and isinstance(value, str) and value.split(",")[0] != "ALL":
        # srun would hand on nothing of what each attempt is told.
        return f"is {value!r}; it has to begin with ALL. Variables of the run go below environment:"
    return ""


def option_value(value: Any) -> str | bool | None:
    """Return what an option below extra is given: text, True for one without a value, None where it is left out."""
    if value is None or value is False:
        return None
    return True if value is True else str(value)


def parse_time_s(text: str) -> int | None:
    """Read a time limit in seconds; None: without one.

    Raises:
        ValueError: with what is allowed.
    """
    text = text.strip().lower()
    if text in ("unlimited", "infinite"):
        return None
    span = _SPAN.fullmatch(text)
    if span and text:
        days, hours, minutes, seconds = (int(part or 0) for part in span.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    clock = _CLOCK.fullmatch(text)
    if clock:
        return _clock_s(*clock.groups())
    raise ValueError("a time such as 90m, 12h, 2-00:00:00 or a number of minutes is needed")


def _clock_s(days: str | None, first: str, second: str | None, third: str | None) -> int:
    """As ``man sbatch`` has it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    parts = [int(part) for part in (first, second, third) if part is not None]
    if days is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def slurm_time(text: str) -> str:
    """Write a time limit as sbatch reads it: ``2-00:00:00``."""
    seconds = parse_time_s(text)
    if seconds is None:
        return "UNLIMITED"
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def parse_memory_mb(text: str) -> int:
    """Read a size of memory in megabytes, as Slurm counts them.

    Raises:
        ValueError: with what is allowed.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError("a size such as 480G or 64000M is needed")
    return max(1, round(int(match[1]) * _MEGABYTES[match[2].upper()]))


def slurm_memory(text: str, share: int) -> str:
    """Write a size of memory, or one of several equal shares of it, as sbatch reads it."""
    megabytes = parse_memory_mb(text) // share
    return f"{megabytes // 1024}G" if megabytes % 1024 == 0 else f"{megabytes}M"


def parse_gpus(text: str) -> tuple[str, int | None]:
    """Read ``8``, ``a100:8`` or ``a100`` as type and number.

    Raises:
        ValueError: with what is allowed.
    """
    match = _GPUS.fullmatch(text.strip())
    if not match:
        raise ValueError("a number, a type, or both are needed: 8, a100, a100:8")
    number = match[2] or match[3]
    return match[1] or "", int(number) if number else None


def parse_gres(text: str) -> tuple[str, int | None]:
    """Read ``gpu:a100:8``, ``gpu:8`` or ``gpu`` as resource and number.

    Raises:
        ValueError: with what is allowed.
    """
    match = _GRES.fullmatch(text.strip())
    if not match:
        raise ValueError("one kind of GPU is needed: gpu, gpu:8, gpu:a100 or gpu:a100:8")
    return match[1], int(match[2]) if match[2] else None


def gpus_per_node(settings: dict[str, Any]) -> int | None:
    """GPUs of each node as the profile says, or None when it leaves that to the recipe."""
    if settings["gres"]:
        return parse_gres(settings["gres"])[1]
    return parse_gpus(str(settings["gpus"]))[1] if settings["gpus"] else None


def lead_s(settings: dict[str, Any], grace_s: int) -> int:
    """How long before the time limit Slurm is to signal: time enough to save, but no more than half of the limit."""
    limit_s = parse_time_s(str(settings["time"])) if settings["time"] else None
    return grace_s if limit_s is None else max(1, min(grace_s, limit_s // 2))
