"""A real two-node Slurm with accounting on this one host, for tests and for a look by hand.

By hand: ``python -m tests.slurm.bed up DIR``, the printed export line, and ``python -m tests.slurm.bed down DIR``.

Each bed has ports, a munge socket, a data base and a folder of its own, so any number of them run side by side. A
keeper process (see keeper.py) starts the daemons, and ends them even where the owner was killed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.slurm.keeper import kill, mentions, offspring, strays

PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server")
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "srun", "sacct")
NODES = ("node1", "node2")
START_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
CALL_LIMIT_S = 60.0
CANCEL_LIMIT_S = 120.0
POLL_S = 0.05
LOG_LINES = 20
# A Unix socket's path has at most 107 characters; slurmstepd's below the folder take up to 40 of them.
FOLDER_LENGTH = 65
# Debian keeps daemons where a PATH made for people does not look.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

SLURMDBD_CONF = """\
DbdHost=localhost
DbdPort={slurmdbd}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
PidFile={folder}/run/slurmdbd.pid
"""

# config_overrides lets a node claim more CPUs than the machine has. Preemption goes by partition: `high` outranks
# `main`. MinJobAge keeps ended jobs visible to scontrol for as long as a test asks; SlurmdTimeout is how long a dead
# node goes unnoticed. Slurm's commands do not heed AuthInfo when they turn to slurmdbd, but AccountingStoragePass.
SLURM_CONF = """\
ClusterName=testbed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
AccountingStorageType=accounting_storage/{storage}
AccountingStorageHost=localhost
AccountingStoragePort={slurmdbd}
AccountingStoragePass={folder}/munge/socket
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptExemptTime=00:00:00
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,preempt_send_user_signal
KillWait=5
SlurmdTimeout=30
JobRequeue=1
MinJobAge=3600
NodeName=DEFAULT CPUs=4 RealMemory=8000 State=UNKNOWN
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node1}
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node2}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes=ALL MaxTime=00:01:00 State=UP PriorityTier=1 GraceTime=20
"""

# mariadbd runs it before it takes its first connection.
DATABASE = """\
CREATE DATABASE IF NOT EXISTS slurm;
CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm.* TO slurm@'127.0.0.1';
"""


class BedError(Exception):
    """A daemon or a command failed; the text names it and ends with what it said."""


def missing() -> str | None:
    """Why this machine cannot carry a bed, or None."""
    if not sys.platform.startswith("linux"):
        return "Slurm's daemons need Linux"
    if os.geteuid() != 0:
        return "the test bed's daemons need root, to run jobs and to become munge and mysql"
    absent = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if absent:
        return f"not found: {', '.join(absent)} (Debian packages: {' '.join(PACKAGES)})"
    return None


def apt(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run apt-get without questions; it waits for another one to finish."""
    return subprocess.run(
        ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def install() -> str | None:
    """Install the packages; why that failed, or None."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return "the packages cannot be installed: that takes root and apt-get"
    wanted = ("install", "--yes", "--no-install-recommends", *PACKAGES)
    done = apt(*wanted)
    if done.returncode:
        # A new machine knows no packages before its first update.
        apt("update")
        done = apt(*wanted)
    return f"the packages cannot be installed: {done.stdout.strip()[-400:]}" if done.returncode else None


def reserve(count: int) -> list[socket.socket]:
    """Sockets bound to free ports, not listening.

    Linux lets a daemon that sets SO_REUSEADDR, as Slurm's and MariaDB's do, listen on such a port, and gives it to
    nobody who asks for just any: neither to another bed, nor to an outgoing connection while the daemon is down.
    """
    held = []
    for _ in range(count):
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        held.append(holder)
    return held


def tail(path: Path) -> str:
    """The end of a log."""
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_LINES:]) or "(its log is empty)"
    return "(it has no log)"


def until(condition: Callable[[], bool], limit_s: float, complaint: Callable[[], str]) -> None:
    """Wait for a condition; a BedError with the complaint where it does not come true in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise BedError(complaint())
        time.sleep(POLL_S)


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; a dead one that nobody collected yet does not."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def describe(processes: Sequence[psutil.Process]) -> list[str]:
    """Those of the processes that run, each as a line for people."""
    lines = []
    for process in filter(alive, processes):
        with contextlib.suppress(psutil.Error):
            lines.append(f"{process.pid} {' '.join(process.cmdline()) or process.name()}")
    return lines


def node_of(process: psutil.Process) -> str | None:
    """The node that a job's process was started on."""
    with contextlib.suppress(psutil.Error):
        node: str | None = process.environ().get("SLURMD_NODENAME")
        return node
    return None


def remains(folder: Path) -> list[str]:
    """What there is of the bed in a folder, by SLURM_CONF, command line or place; the folder itself too."""
    found = {process.pid: process for process in (*strays(folder), *mentions(folder))}
    return describe(list(found.values())) + [str(path) for path in [folder] if path.exists()]


class Keeper:
    """The owner's end of the pipe to a keeper process."""

    def __init__(self, folder: Path, held: Sequence[socket.socket]) -> None:
        # The holders of the ports move to the keeper: they last as long as the daemons, also without the owner.
        with (folder / "log/keeper.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("keeper.py")), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd="/",
                env={"PATH": PATH},
                pass_fds=[holder.fileno() for holder in held],
                start_new_session=True,
            )
        (folder / "keeper.pid").write_text(f"{self.process.pid}\n")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the bed's keeper is gone"}
        if "error" in answer:
            raise BedError(answer["error"])
        return answer

    def children(self) -> list[psutil.Process]:
        """The daemons, the steps' managers, and whatever else lost its parent."""
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.process.pid).children()
        return []

    def close(self) -> None:
        """Let go of the pipe and wait: the keeper ends everything below it, then itself."""
        # What outlasts the limit is found and named by the bed's own look afterwards.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=STOP_LIMIT_S)


class Cluster:
    """The Slurm that an environment names."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def call(self, *command: str, limit_s: float = CALL_LIMIT_S) -> str:
        """The standard output of one of Slurm's commands; a BedError with what it said where it fails."""
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired as error:
            raise BedError(str(error)) from None
        if done.returncode:
            raise BedError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def cancel_jobs(self, below: Path | None = None) -> None:
        """Cancel this user's jobs, or those that work below a folder, and wait until none is left."""

        def queued() -> list[list[str]]:
            lines = self.call("squeue", "--noheader", "--me", "--format=%A|%t|%Z|%o").splitlines()
            return [line.split("|") for line in lines if below is None or f"{below}/" in line]

        def gone() -> bool:
            # A job that is completing ends by itself, or comes back to the queue and is cancelled there.
            left = queued()
            for job in {fields[0] for fields in left if fields[1] != "CG"}:
                with contextlib.suppress(BedError):
                    self.call("scancel", job)
            return not left

        until(gone, CANCEL_LIMIT_S, lambda: f"jobs that do not end: {queued()}")


class Bed(Cluster):
    """One cluster of two nodes below a folder of its own; ``environment`` names it to other processes."""

    def __init__(self, folder: Path | None = None, *, accounting: bool = True) -> None:
        super().__init__({})
        self.accounting = accounting
        self._wish = folder
        self._keeper: Keeper | None = None
        self._daemons: dict[str, psutil.Process] = {}

    def __enter__(self) -> Bed:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Bring the cluster up, both nodes idle; where that fails, leave nothing behind."""
        self._make_folder()
        try:
            held = reserve(5)
            self._configure([holder.getsockname()[1] for holder in held])
            self._keeper = Keeper(self.folder, held)
            for holder in held:
                holder.close()
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self.start_controller()
            for node in NODES:
                self._spawn_node(node)
            for node in NODES:
                self._await_node(node)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every daemon, step, job and client of the bed, and remove its folder."""
        if not self.environment:
            return
        if self._keeper is not None:
            self._keeper.close()
        self._keeper, self._daemons = None, {}
        kill(strays(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)
        until(lambda: not self.leftovers(), STOP_LIMIT_S, lambda: f"left of the bed: {self.leftovers()}")

    def outlive(self) -> None:
        """Let the bed stay up when this process ends, until ``down``."""
        assert self._keeper is not None
        self._keeper.ask({"outlive": True})

    def leftovers(self) -> list[str]:
        """What there is of the bed: what remains of its folder, and what is below its keeper."""
        return list(dict.fromkeys([*describe(self._kept()), *remains(self.folder)]))

    def pids(self) -> list[int]:
        """The processes that the bed started, the keeper and jobs included."""
        return [process.pid for process in self._kept()]

    def job_processes(self) -> list[str]:
        """What runs beside the daemons: processes of steps and jobs, and clients such as srun."""
        return describe(self._beside_daemons())

    def kill_job_processes(self) -> None:
        """End what runs beside the daemons, whatever Slurm thinks of it."""
        kill(self._beside_daemons())

    # Daemons one by one

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        self._spawn("slurmctld", "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        self._await("slurmctld", lambda: " is UP" in self.call("scontrol", "ping"))

    def stop_controller(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End slurmctld alone: the nodes and their jobs go on."""
        self._end("slurmctld", how)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd and wait until the controller takes the node for working."""
        self._spawn_node(node)
        self._await_node(node)

    def kill_node(self, node: str) -> None:
        """Kill a node as a power cut does: its slurmd, its steps and their processes."""
        self._end(f"slurmd-{node}", signal.SIGKILL)
        until(lambda: not self._kill_steps(node), STOP_LIMIT_S, lambda: f"left on {node}: {self.job_processes()}")

    def mend(self) -> None:
        """Start the daemons that are down."""
        if not self._up("slurmctld"):
            self.start_controller()
        for node in NODES:
            if not self._up(f"slurmd-{node}"):
                self.start_node(node)

    # How

    @property
    def folder(self) -> Path:
        """Where the bed is."""
        return Path(self.environment["SLURM_CONF"]).parent

    def _make_folder(self) -> None:
        """An empty folder that the users munge and mysql may pass through."""
        # Not pytest's own folder: its parent is closed to other users. munged takes /tmp for safe, as it is sticky.
        folder = self._wish.absolute() if self._wish else Path(tempfile.mkdtemp(prefix="llavajob-slurm-"))
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) or len(str(folder)) > FOLDER_LENGTH:
            raise BedError(f"{folder} has to be empty, and its path at most {FOLDER_LENGTH} characters long")
        folder.chmod(0o755)
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        for name in ("log", "run", "state", "munge", "db", "db-tmp", *(f"spool/{node}" for node in NODES)):
            (folder / name).mkdir(parents=True)

    def _configure(self, ports: Sequence[int]) -> None:
        """Write Slurm's two configurations; slurmdbd looks for its own beside SLURM_CONF."""
        values = {
            **dict(zip(("mariadb", "slurmdbd", "slurmctld", *NODES), ports, strict=True)),
            "folder": self.folder,
            "host": socket.gethostname().split(".")[0],
            "storage": "slurmdbd" if self.accounting else "none",
        }
        self._port_of_mariadb = ports[0]
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**values))
        private = self.folder / "slurmdbd.conf"
        private.touch(mode=0o600)
        private.write_text(SLURMDBD_CONF.format(**values))

    def _start_munge(self) -> None:
        """Start munged as its own user, on a socket that only this bed's configuration names."""
        place = self.folder / "munge"
        (place / "key").touch(mode=0o600)
        (place / "key").write_bytes(secrets.token_bytes(128))
        for path in (place, place / "key"):
            shutil.chown(path, "munge", "munge")
        files = [f"--{name}-file={place / name}" for name in ("key", "pid", "seed")]
        self._spawn("munged", "munged", "--foreground", f"--socket={place / 'socket'}", *files, user="munge")
        self._await("munged", lambda: self.call("munge", "--no-input", f"--socket={place / 'socket'}"))

    def _start_accounting(self) -> None:
        """Start the data base and slurmdbd, and make the cluster, an account and the user known."""
        self._start_mariadb()
        self._spawn("slurmdbd", "slurmdbd", "-D")
        self._await("slurmdbd", lambda: self.call("sacctmgr", "--noheader", "list", "cluster"))
        self.call("sacctmgr", "--immediate", "add", "cluster", "testbed")
        self.call("sacctmgr", "--immediate", "add", "account", "test", "Cluster=testbed")
        self.call("sacctmgr", "--immediate", "add", "user", "root", "Account=test")

    def _start_mariadb(self) -> None:
        """Make a data base and start its daemon; its data is thrown away with the bed, so nothing is synced to disk."""
        data, temporary, begin = self.folder / "db", self.folder / "db-tmp", self.folder / "database.sql"
        begin.write_text(DATABASE)
        for path in (data, temporary):
            shutil.chown(path, "mysql", "mysql")
        # A starting mariadbd removes what it finds of temporary tables in its tmpdir: another bed's, were it /tmp.
        common = ("--no-defaults", f"--datadir={data}", f"--tmpdir={temporary}")
        made = ("--user=mysql", "--skip-test-db", "--auth-root-authentication-method=socket")
        self.call(str(shutil.which("mariadb-install-db", path=PATH)), *common, *made)
        serve = (f"--socket={data / 'socket'}", f"--port={self._port_of_mariadb}", "--bind-address=127.0.0.1")
        lean = ("--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M", "--skip-name-resolve")
        self._spawn("mariadbd", "mariadbd", *common, *serve, *lean, f"--init-file={begin}", user="mysql")
        self._await("mariadbd", lambda: self.call("mariadb-admin", f"--socket={data / 'socket'}", "ping"))

    def _spawn_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self._spawn(f"slurmd-{node}", "slurmd", "-D", "-N", node, "-f", str(self.folder / "slurm.conf"))

    def _await_node(self, node: str) -> None:
        """Wait until a node's slurmd listens and the controller hears it; it may be at work for a job already."""
        name = f"slurmd-{node}"
        self._await(name, lambda: any(link.pid == self._daemons[name].pid for link in psutil.net_connections("tcp")))
        state = ("sinfo", "--noheader", "--partition=main", f"--nodes={node}", "--format=%t")
        self._await(name, lambda: self.call(*state).strip() in ("idle", "mix", "alloc", "comp"))

    def _spawn(self, name: str, *command: str, user: str | None = None) -> None:
        """Have the keeper start a daemon."""
        assert self._keeper is not None
        if self._up(name):
            raise BedError(f"{name} is up already")
        request = {
            "argv": [shutil.which(command[0], path=PATH) or command[0], *command[1:]],
            "env": {"PATH": PATH, **self.environment},
            "log": str(self._log(name)),
            "user": user,
        }
        with contextlib.suppress(psutil.NoSuchProcess):
            self._daemons[name] = psutil.Process(self._keeper.ask(request)["pid"])

    def _log(self, name: str) -> Path:
        """Where a daemon's output goes."""
        return self.folder / f"log/{name}.log"

    def _said(self, name: str) -> str:
        """The end of what a daemon said."""
        return tail(self._log(name))

    def _up(self, name: str) -> bool:
        """Whether a daemon runs."""
        return name in self._daemons and alive(self._daemons[name])

    def _await(self, name: str, condition: Callable[[], object]) -> None:
        """Wait for a daemon to do its work: the condition is not False and raises no BedError."""
        last = ""

        def ready() -> bool:
            nonlocal last
            if not self._up(name):
                raise BedError(f"{name} ended: {self._said(name)}")
            try:
                return condition() is not False
            except BedError as error:
                last = f"{error}\n"
                return False

        told = f"{name} does not work after {START_LIMIT_S:.0f} s"
        until(ready, START_LIMIT_S, lambda: f"{told}: {last}{self._said(name)}")

    def _end(self, name: str, how: signal.Signals) -> None:
        """End a daemon with its helpers."""
        ending = [self._daemons[name], *offspring(self._daemons[name])]
        with contextlib.suppress(psutil.NoSuchProcess):
            ending[0].send_signal(how)
        until(lambda: not any(map(alive, ending)), STOP_LIMIT_S, lambda: f"{name} stays: {self._said(name)}")

    def _kept(self) -> list[psutil.Process]:
        """The keeper and everything below it."""
        if self._keeper is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            keeper = psutil.Process(self._keeper.process.pid)
            return [keeper, *offspring(keeper)]
        return []

    def _steps(self) -> list[list[psutil.Process]]:
        """The families of processes below the keeper that are no daemon's: steps, and jobs' background processes."""
        known = {process.pid for process in self._daemons.values()}
        tops = [process for process in (self._keeper.children() if self._keeper else []) if process.pid not in known]
        return [[top, *offspring(top)] for top in tops]

    def _beside_daemons(self) -> list[psutil.Process]:
        """Processes of steps, and clients."""
        kept = set(self.pids())
        clients = [process for process in strays(self.folder) if process.pid not in kept]
        return [process for family in self._steps() for process in family] + clients

    def _kill_steps(self, node: str) -> bool:
        """Kill the steps of a node; whether there were any."""
        # A step's manager listens on a socket in its node's folder; what it started is told the node's name.
        place = f"{self.folder}/spool/{node}/"
        managers = {link.pid for link in psutil.net_connections("unix") if str(link.laddr).startswith(place)}
        found = [
            family
            for family in self._steps()
            if any(process.pid in managers or node_of(process) == node for process in family)
        ]
        for family in found:
            kill(family)
        return bool(found)


def up(folder: Path) -> None:
    """Start a bed that stays."""
    bed = Bed(folder)
    bed.start()
    bed.outlive()
    print(f"export SLURM_CONF={bed.environment['SLURM_CONF']}")


def down(folder: Path) -> None:
    """End a bed that was to stay."""
    try:
        keeper = psutil.Process(int((folder / "keeper.pid").read_text()))
        if str(folder) not in keeper.cmdline():
            raise psutil.NoSuchProcess(keeper.pid)
        keeper.terminate()
    except (OSError, psutil.NoSuchProcess):
        raise BedError(f"no bed runs in {folder}") from None
    until(lambda: not alive(keeper), STOP_LIMIT_S, lambda: f"left of the bed: {remains(folder)}")


def main() -> None:
    """The command for people."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.bed", description=up.__doc__)
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    reason = missing()
    if reason:
        raise SystemExit(reason)
    try:
        {"up": up, "down": down}[asked.action](asked.folder.absolute())
    except BedError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
