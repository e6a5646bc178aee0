"""How many cores this process may use: those it may run on, and what its control groups give it of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ENV_CPUS = "LLAVAJOB_CPUS"
"""CPUs that the plan asks for, such as 12 or 0.5: not every cluster turns them into a quota."""
_MEMBERSHIP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_V1_FOLDERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")


def usable_cores() -> int:
    """Return the number of cores to use, at least one: the least of affinity, quotas and what the plan asks for."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    limits = [cores, *_quotas(_MEMBERSHIP, _CGROUPS)]
    try:
        asked = float(os.environ.get(ENV_CPUS) or 0)
    except ValueError:
        asked = 0.0
    if asked > 0:
        limits.append(asked)
    # A part of a core is no thread's worth.
    return max(1, int(min(limits)))


def _quotas(membership: Path, cgroups: Path) -> Iterator[float]:
    """Cores that each control group above this process gives it, as far as one sets a quota."""
    try:
        lines = membership.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, text = rest.partition(":")
        path = PurePosixPath(text)
        # In a container the path may be the host's; the container's own group is then at the top.
        groups = [str(group).lstrip("/") for group in (path, *path.parents)]
        if number == "0" and not controllers:
            quotas = [_quota_v2(folder / group) for folder in (cgroups, cgroups / "unified") for group in groups]
        elif "cpu" in controllers.split(","):
            quotas = [_quota_v1(cgroups / name / group) for name in _V1_FOLDERS for group in groups]
        else:
            continue
        yield from (quota for quota in quotas if quota is not None)


def _quota_v2(group: Path) -> float | None:
    """Read ``cpu.max``: ``150000 100000`` is 1.5 cores, ``max 100000`` no quota."""
    quota, _, period = _text(group / "cpu.max").partition(" ")
    return _cores(quota, period)


def _quota_v1(group: Path) -> float | None:
    """Read the two files of version 1; a quota of -1 is none."""
    return _cores(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))


def _cores(quota: str, period: str) -> float | None:
    if not (quota.isdecimal() and period.isdecimal()) or int(period) == 0 or int(quota) == 0:
        return None
    return int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
