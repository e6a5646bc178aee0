"""Which run holds which GPU of this machine, first come, first served, over all of its users.

Every claim is a file of its own that its supervisor keeps locked as long as it lives: the kernel lets the lock go when
the process ends, so a claim needs no process id and no clock to be judged, and a file that nobody holds counts for
nothing. The claims lie in a folder of this machine that every user may write to, in one folder per boot, so that
machines which share that folder do not share their claims.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import locks, paths, processes
from launcher.machine import this_machine
from launcher.names import is_name
from launcher.run_folder import read_json

ENV_LEDGER = "LLAVAJOB_GPU_LEDGER"
"""Names another folder for the claims."""
_SHARED_FOLDER = Path("/tmp/llavajob-gpus")
_LEDGER_PATIENCE_S = 10.0
_MOST_BYTES = 65536


def state_folder() -> Path:
    """Folder for what all runs of this user on this machine share."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else paths.home() / ".local" / "state") / "llavajob"


def count_gpus() -> int:
    """Count this machine's GPUs, honouring CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=30)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def total_gpus(granted: int | None) -> int:
    """How many GPUs runs may use: what the profile grants, else all of this machine's."""
    return count_gpus() if granted is None else granted


def gpu_names(total: int) -> list[str]:
    """The CUDA names of the GPUs that runs may use: those that are visible, else the first ones."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return [visible[i] if i < len(visible) and visible[i] else str(i) for i in range(total)]


@dataclass(frozen=True)
class Grant:
    """What a try for GPUs came to: the GPUs, or the run that stands in the way."""

    gpus: list[str] | None
    waits_for: str = ""


class GpuClaim:
    """One supervisor's claim: a place in the queue, then the GPUs, until it is released."""

    def __init__(self, run: str, names: list[str]) -> None:
        """Prepare a claim.

        Args:
            run: name of the run, shown to others that wait.
            names: the GPUs to choose from.
        """
        self._run = run
        self._names = names
        self._path = Path()
        self._mine: dict[str, Any] = {}
        self.descriptor: int | None = None
        """Keeps the claim alive; a process that inherits it keeps the GPUs until it has ended, too."""

    def try_take(self, wanted: int) -> Grant:
        """Take GPUs if enough are free and nobody waits longer; otherwise keep a place in the queue."""
        folder = ledger_folder()
        try:
            with _locked(folder):
                return self._take(folder, wanted)
        except locks.Held:
            return Grant(None, f"whoever holds {folder / 'lock'}")

    def _take(self, folder: Path, wanted: int) -> Grant:
        others = _claims(folder, self._path.name)
        if self.descriptor is None:
            self._queue_up(folder, 1 + max((other["place"] for other in others), default=0))
        ahead = [other for other in others if other["place"] < self._mine["place"]]
        waiting = [other["run"] for other in ahead if not other["gpus"]]
        taken = {gpu for other in others for gpu in other["gpus"]} | _taken_by_older_version(self._names)
        free = [name for name in self._names if name not in taken]
        free.sort(key=lambda name: name not in self._mine["gpus"])  # those it has already come first
        if waiting or len(free) < wanted:
            holders = [other["run"] for other in others if other["gpus"]]
            return Grant(None, waiting[-1] if waiting else ", ".join(holders) or "another run")
        self._mine["gpus"] = free[:wanted]
        self._write()
        return Grant(free[:wanted])

    def _queue_up(self, folder: Path, place: int) -> None:
        self._path = folder / f"claim-{secrets.token_hex(8)}.json"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self.descriptor = os.open(self._path, flags, 0o644)
        os.fchmod(self.descriptor, 0o644)  # whatever the umask: other users must see what is taken
        locks.lock_descriptor(self.descriptor, 0.0)
        self._mine = {"run": self._run, "place": place, "gpus": []}
        self._write()

    def _write(self) -> None:
        assert self.descriptor is not None
        data = json.dumps(self._mine).encode()
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, data, 0)

    def release(self) -> None:
        """Give back what is held, the place in the queue included."""
        if self.descriptor is None:
            return
        self._path.unlink(missing_ok=True)
        os.close(self.descriptor)
        self.descriptor = None


def ledger_folder() -> Path:
    """Return the folder of this boot's claims, made where it is missing.

    The folder of all users is used only if it cannot be turned against this one: a folder itself, no link, in which
    nobody can take away what others wrote. Else this user's own state folder must do.
    """
    named = os.environ.get(ENV_LEDGER)
    boot = this_machine()["boot_id"] or this_machine()["host"]
    for base in (Path(named) if named else _SHARED_FOLDER, _own_folder()):
        if base is None:
            continue
        folder = base / boot
        with suppress(OSError):
            base.parent.mkdir(parents=True, exist_ok=True)
        if _make_shared(base) and _make_shared(folder) and _is_plain_or_missing(folder / "lock"):
            return folder
    raise OSError(f"no folder for GPU claims can be made; set {ENV_LEDGER} to one that all users can write to")


def is_shared(folder: Path) -> bool:
    """Tell whether other users' claims are seen in a ledger's folder."""
    own = _own_folder()
    return own is None or not folder.is_relative_to(own)


def _own_folder() -> Path | None:
    try:
        return state_folder() / "gpus"
    except RuntimeError:  # a user without a home
        return None


def _make_shared(folder: Path) -> bool:
    """Make a folder that every user may write to; tell whether there is a usable one."""
    # Shared from its first moment on: a folder that is not yet looks to another user like one to keep away from.
    mask = os.umask(0)
    try:
        folder.mkdir(0o1777)
    except FileExistsError:
        pass
    except OSError:
        return False
    finally:
        os.umask(mask)
    try:
        found = folder.lstat()
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode) or not os.access(folder, os.W_OK | os.X_OK):
        return False
    own = found.st_uid in (0, os.geteuid())
    return own or bool(found.st_mode & stat.S_ISVTX)


def _is_plain_or_missing(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the ledger: one supervisor at a time reads and writes claims.

    The lock file belongs to whoever came first. It is opened for reading alone, which a lock does not mind, and other
    users cannot write to it.
    """
    path = folder / "lock"
    with suppress(FileExistsError):
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.fchmod(made, 0o644)
        os.close(made)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        locks.lock_descriptor(descriptor, _LEDGER_PATIENCE_S)
        yield
    finally:
        os.close(descriptor)


def _claims(folder: Path, mine: str) -> list[dict[str, Any]]:
    """Read what other supervisors claim, first come first; clear away claims whose supervisor has ended."""
    found = []
    for path in folder.glob("claim-*.json"):
        if path.name == mine:
            continue
        if not locks.is_held(path):
            _clear(path)
            continue
        claim = _read_claim(path)
        if claim is not None:
            found.append(claim)
    return sorted(found, key=lambda claim: int(claim["place"]))


def _clear(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        return  # another user's: it counts for nothing, and goes with the next start of the machine


def _read_claim(path: Path) -> dict[str, Any] | None:
    try:
        # Anybody may put anything there: a pipe would have the reader wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            values = json.loads(file.read(_MOST_BYTES))
        gpus = [str(gpu) for gpu in values["gpus"]]
        run = str(values["run"])  # shown to people, and anybody may have written it
        return {"run": run if is_name(run) else "another run", "place": int(values["place"]), "gpus": gpus}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _taken_by_older_version(names: list[str]) -> set[str]:
    """GPUs that supervisors of the version before hold, by this user's ledger of then."""
    own = _own_folder()
    entries = (read_json(own.with_name("gpus.json")) or {}).get("entries", []) if own else []
    taken = set()
    for entry in entries if isinstance(entries, list) else []:
        try:
            ticks = processes.start_ticks(int(entry["pid"]))
            since = float(entry["started"]) - processes.boot_time()
            numbers = [int(gpu) for gpu in entry["gpus"]]
        except (TypeError, KeyError, ValueError):
            continue
        if ticks is not None and abs(processes.seconds_since_boot(ticks) - since) < 2.0:
            taken |= {names[number] for number in numbers if 0 <= number < len(names)}
    return taken
