"""A real one-node Kubernetes with the Kubeflow training operator on this one host, for tests and for a look by hand.

By hand: ``python -m tests.kubernetes.bed build`` once, then ``python -m tests.kubernetes.bed up DIR``, the printed
export line, and ``python -m tests.kubernetes.bed down DIR``.

Each bed has its own folder, processes, mounts and network (see keeper.py), so any number of them run side by side, and
one port on the host's loopback. Its pods see the host's files where they mount them, and no network but the bed's.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.kubernetes import configuration
from tests.kubernetes.build import build, missing_programs, missing_tools, programs
from tests.kubernetes.configuration import (
    API_PORT,
    CONTAINERD_SOCKET,
    GATEWAY,
    NODE,
    OPERATOR_NAMESPACE,
    WEBHOOK_SECRET,
    webhook_service,
    write_configuration,
)
from tests.kubernetes.image import REPOSITORY, write_image
from tests.kubernetes.keeper import CGROUPS, NAMESPACES, cgroups, remove_cgroups
from tests.slurm.bed import BedError, alive, describe, tail, until
from tests.slurm.keeper import mentions, offspring

TOOLS = ("ip", "mount", "nice", "openssl", "sh", "unshare")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0
CALL_LIMIT_S = 60.0
FOLDERS = ("log", "pki", "cni", "webhook", "pod-logs", "containerd", "kubelet")
# The bed has its own of these, so a bed's folder there would be out of sight.
HIDDEN = tuple(map(Path, ("/run", "/var/run", "/var/lib", "/var/log", "/proc", "/sys", "/dev")))
# A Unix socket's path has at most 107 characters; the kubelet's below the folder take up to 45 of them.
FOLDER_LENGTH = 60

# What a bed does that a machine may not allow, in namespaces that end with it.
TRIAL = """\
ip link add bed type bridge
mount -t tmpfs tmpfs /run
mkdir /run/upper /run/work
mount -t overlay -o lowerdir=/var/lib,upperdir=/run/upper,workdir=/run/work overlay /var/lib
"""
# The operator's webhook wants a container named pytorch.
WRONG_JOB = {
    "apiVersion": "kubeflow.org/v1",
    "kind": "PyTorchJob",
    "metadata": {"name": "wrong"},
    "spec": {
        "pytorchReplicaSpecs": {
            "Master": {"replicas": 1, "template": {"spec": {"containers": [{"name": "wrong", "image": "none"}]}}}
        }
    },
}


def missing() -> str | None:
    """Why this machine cannot carry a bed whose programs are built, or None."""
    if not sys.platform.startswith("linux"):
        return "a kubelet and its containers need Linux"
    if os.geteuid() != 0:
        return "the test bed needs root, for namespaces, mounts and containers"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if absent:
        return f"not found: {', '.join(absent)}"
    groups = CGROUPS if (CGROUPS / "cgroup.controllers").exists() else CGROUPS / "memory"
    if not os.access(groups, os.W_OK):
        return f"the test bed makes control groups, and {groups} cannot be written"
    tried = subprocess.run(["unshare", *NAMESPACES, "--fork", "sh", "-euc", TRIAL], capture_output=True, text=True)
    return f"namespaces, mounts and bridges are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


class Cluster:
    """The Kubernetes that an environment names."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def kubectl(self, *arguments: str, stdin: str | None = None, limit_s: float = CALL_LIMIT_S) -> str:
        """The standard output of kubectl; a BedError with what it said where it fails."""
        built = programs()["kubectl"]
        command = [str(built) if built.exists() else "kubectl", *arguments]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **self.environment},
                input=stdin or "",
                capture_output=True,
                text=True,
                timeout=limit_s,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BedError(str(error)) from None
        if done.returncode:
            raise BedError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Make objects be as they are given."""
        items = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "--server-side", "--filename=-", stdin=json.dumps(items))

    def create(self, namespace: str, *objects: dict[str, Any]) -> None:
        """Make new objects in a namespace."""
        items = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("create", "--filename=-", f"--namespace={namespace}", stdin=json.dumps(items))

    def get(self, kind: str, name: str = "", namespace: str = "default", **options: str) -> dict[str, Any]:
        """An object, or the list of all of a kind."""
        asked = [f"--{option}={value}" for option, value in options.items()]
        text = self.kubectl("get", kind, *filter(None, [name]), f"--namespace={namespace}", *asked, "--output=json")
        found: dict[str, Any] = json.loads(text)
        return found

    def clear(self, namespace: str) -> None:
        """Delete a namespace and what runs in it, without the time that its pods may take to end."""
        self.kubectl("delete", "pytorchjobs,jobs", "--all", "--wait=false", f"--namespace={namespace}")
        self.kubectl("delete", "pods", "--all", "--force", "--grace-period=0", f"--namespace={namespace}")
        # It stays for five seconds more, whatever it holds.
        self.kubectl("delete", "namespace", namespace, "--wait=false")


class Machine:
    """The owner's end of the pipe to a keeper."""

    def __init__(self, folder: Path, listener: socket.socket) -> None:
        # The listener moves to the keeper: it lasts as long as the bed, also without the owner.
        with (folder / "log/keeper.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.kubernetes.keeper", str(folder), str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd="/",
                env={"PATH": PATH, "PYTHONPATH": str(REPOSITORY)},
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        (folder / "keeper.pid").write_text(f"{self.process.pid}\n")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the bed's keeper is gone"}
        if "error" in answer:
            raise BedError(answer["error"])
        return answer

    def close(self) -> None:
        """Let go of the pipe and wait: the keeper ends everything in the bed, then itself."""
        # What outlasts the limit is found and named by the bed's own look afterwards.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=STOP_LIMIT_S)


def remains(folder: Path) -> list[str]:
    """What there is of the bed in a folder: processes that name it, control groups, the folder itself."""
    places = [*cgroups(folder), *([folder] if folder.exists() else [])]
    return [*describe(mentions(folder)), *map(str, places)]


class Bed(Cluster):
    """One cluster below a folder of its own; ``environment`` names it to other processes."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__({})
        self._wish = folder
        self._machine: Machine | None = None

    def __enter__(self) -> Bed:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Bring the cluster up, its node ready and the operator at work; where that fails, leave nothing behind."""
        self._make_folder()
        try:
            self._start_machine()
            self._start_node()
            self._spawn("etcd")
            self.start_api()
            for name in ("controllers", "scheduler", "kubelet", "coredns"):
                self._spawn(name)
            self._start_operator()
            self._await_node()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every daemon, shim and pod of the bed with its mounts and network, and remove its folder."""
        if not self.environment:
            return
        if self._machine is not None:
            self._machine.close()
        self._machine = None
        remove_cgroups(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        until(lambda: not self.leftovers(), STOP_LIMIT_S, lambda: f"left of the bed: {self.leftovers()}")

    def outlive(self) -> None:
        """Let the bed stay up when this process ends, until ``down``."""
        assert self._machine is not None
        self._machine.ask(outlive=True)

    def leftovers(self) -> list[str]:
        """What there is of the bed: what remains of its folder, and what is below its keeper."""
        return list(dict.fromkeys([*describe(self._kept()), *remains(self.folder)]))

    def pids(self) -> list[int]:
        """The processes that the bed started, the keeper and pods included."""
        return [process.pid for process in self._kept()]

    # Daemons one by one

    def start_api(self) -> None:
        """Start the API server and wait until it is ready."""
        self._spawn("apiserver")
        self._await("apiserver", lambda: self._inside_kubectl("get", "--raw=/readyz"))
        relay = [sys.executable, str(Path(__file__).with_name("relay.py"))]
        self._spawn("relay", [*relay, str(self._listener), GATEWAY, str(API_PORT)], sockets=[self._listener])
        self._await("relay", lambda: self.kubectl("get", "--raw=/readyz"))

    def stop_api(self) -> None:
        """Kill the API server alone: its port refuses connections, and the pods go on."""
        # It would wait a minute for those that watch, were it asked to end.
        self._end("relay", signal.SIGTERM)
        self._end("apiserver", signal.SIGKILL)

    def stop_daemon(self, name: str) -> None:
        """Kill one of the daemons: controllers, scheduler, kubelet, coredns or operator; ``mend`` starts it again."""
        self._end(name, signal.SIGKILL)

    def mend(self) -> None:
        """Start the daemons that are down, and wait until they work."""
        down = {*configuration.daemons(self.folder), "relay"} - self._up()
        if down & {"relay", "apiserver"}:
            self.stop_api()
            self.start_api()
        for name in down - {"relay", "apiserver"}:
            self._spawn(name)
        if "operator" in down:
            self._await("operator", self._webhook_refuses)
        if down & {"kubelet", "coredns"}:
            self._await_node()

    # How

    @property
    def folder(self) -> Path:
        """Where the bed is."""
        return Path(self.environment["KUBECONFIG"]).parent

    def _make_folder(self) -> None:
        """An empty folder that pods may pass through."""
        folder = self._wish.absolute() if self._wish else Path(tempfile.mkdtemp(prefix="llavajob-kubernetes-"))
        if any(folder.is_relative_to(place) for place in HIDDEN) or len(str(folder)) > FOLDER_LENGTH:
            raise BedError(
                f"{folder} is below {', '.join(map(str, HIDDEN))}, or longer than {FOLDER_LENGTH} characters"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise BedError(f"{folder} is not empty")
        folder.chmod(0o755)
        self.environment = {"KUBECONFIG": str(folder / "kubeconfig"), "KUBECACHEDIR": str(folder / "kubectl-cache")}
        for name in FOLDERS:
            (folder / name).mkdir()

    def _start_machine(self) -> None:
        """Make the namespaces, and the bed's network and mounts in them."""
        with reserve() as listener:
            write_configuration(self.folder, listener.getsockname()[1])
            self._listener = listener.fileno()
            self._machine = Machine(self.folder, listener)
        self._inside("sh", "-eu", str(self.folder / "machine.sh"))
        write_image(programs()["busybox"], self.folder / "image.tar")

    def _start_node(self) -> None:
        """Start the container runtime and give it the image."""
        self._spawn("containerd")
        ctr = (str(programs()["ctr"]), f"--address={CONTAINERD_SOCKET}", "--connect-timeout=1s", "--namespace=k8s.io")
        self._await("containerd", lambda: self._inside(*ctr, "images", "import", str(self.folder / "image.tar")))

    def _start_operator(self) -> None:
        """Make the operator's objects and start it, its webhook included."""
        manifests = self.kubectl("kustomize", str(programs()["manifests"] / "overlays/standalone"))
        # The operator is no pod here, so it needs no Deployment, and its Service other ends.
        other = re.compile("^kind: (Deployment|Service)$|^  name: (tf|mpi|xgboost|paddle|jax)jobs", re.MULTILINE)
        wanted = "\n---\n".join(text for text in manifests.split("\n---\n") if not other.search(text))
        self.kubectl("apply", "--server-side", "--filename=-", stdin=wanted)
        self.apply(*webhook_service())
        self._spawn("operator")
        self._await("operator", self._mount_certificates)
        self._await("operator", self._webhook_refuses)

    def _mount_certificates(self) -> bool:
        """Do what a mounted secret does: put the certificates that the operator makes where it reads them."""
        held = self.get("secret", WEBHOOK_SECRET, OPERATOR_NAMESPACE).get("data", {})
        for name, value in held.items():
            (self.folder / "webhook" / name).write_bytes(base64.b64decode(value))
        return "tls.crt" in held

    def _webhook_refuses(self) -> bool:
        """Whether the webhook answers."""
        try:
            self.kubectl("create", "--dry-run=server", "--filename=-", stdin=json.dumps(WRONG_JOB))
        except BedError as error:
            return "denied the request" in str(error)
        return False

    def _await_node(self) -> None:
        """Wait until the node takes pods, and names are found."""
        query = "--output=jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        self._await("kubelet", lambda: self.kubectl("get", "node", NODE, query) == "True")
        find = (str(programs()["busybox"]), "nslookup", "kubernetes.default.svc.cluster.local", GATEWAY)
        self._await("coredns", lambda: "Name:" in self._inside(*find))

    def _inside(self, *command: str) -> str:
        """The standard output of a command in the bed."""
        assert self._machine is not None
        out: str = self._machine.ask(call=command, env=self._variables())["out"]
        return out

    def _inside_kubectl(self, *arguments: str) -> str:
        """The standard output of kubectl in the bed, where the API server is reached without the relay."""
        return self._inside(str(programs()["kubectl"]), f"--kubeconfig={self.folder}/inner.kubeconfig", *arguments)

    def _variables(self) -> dict[str, str]:
        """The environment of what runs in the bed: containerd finds its shim by PATH."""
        return {"PATH": f"{programs()['containerd'].parent}:{PATH}", "HOME": str(self.folder)}

    def _spawn(self, name: str, command: Sequence[str] = (), sockets: Sequence[int] = ()) -> None:
        """Have the keeper start a daemon."""
        assert self._machine is not None
        if name in self._up():
            raise BedError(f"{name} is up already")
        argv = command or configuration.daemons(self.folder)[name]
        log = str(self.folder / f"log/{name}.log")
        self._machine.ask(start=name, argv=argv, env=self._variables(), log=log, sockets=sockets)

    def _up(self) -> set[str]:
        """The daemons that run."""
        assert self._machine is not None
        return {*self._machine.ask()["up"]}

    def _end(self, name: str, how: signal.Signals) -> None:
        """End a daemon, if it runs."""
        assert self._machine is not None
        if name in self._up():
            self._machine.ask(end=name, signal=how, limit_s=STOP_LIMIT_S)

    def _await(self, name: str, condition: Callable[[], object]) -> None:
        """Wait for a daemon to do its work: the condition is not False and raises no BedError."""
        last = ""

        def ready() -> bool:
            nonlocal last
            if name not in self._up():
                raise BedError(f"{name} ended: {tail(self.folder / f'log/{name}.log')}")
            try:
                return condition() is not False
            except BedError as error:
                last = f"{error}\n"
                return False

        told = f"{name} does not work after {START_LIMIT_S:.0f} s"
        until(ready, START_LIMIT_S, lambda: f"{told}: {last}{tail(self.folder / f'log/{name}.log')}")

    def _kept(self) -> list[psutil.Process]:
        """The keeper and everything below it."""
        if self._machine is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            keeper = psutil.Process(self._machine.process.pid)
            return [keeper, *offspring(keeper)]
        return []


def reserve() -> socket.socket:
    """A socket bound to a free port of the loopback, not listening."""
    # A port that was not asked for by number is lost when the socket stops listening.
    with socket.socket() as chosen, contextlib.ExitStack() as undo:
        chosen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        chosen.bind(("127.0.0.1", 0))
        listener = undo.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(chosen.getsockname())
        undo.pop_all()
    return listener


def up(folder: Path) -> None:
    """Start a bed that stays."""
    bed = Bed(folder)
    bed.start()
    bed.outlive()
    print(f"export KUBECONFIG={bed.environment['KUBECONFIG']}")


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
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes.bed")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("build", help="Build and unpack the bed's programs, once.")
    for name, action in (("up", up), ("down", down)):
        actions.add_parser(name, help=action.__doc__).add_argument("folder", type=Path)
    asked = parser.parse_args()
    reason = missing_tools() if asked.action == "build" else missing() or missing_programs()
    if reason:
        raise SystemExit(reason)
    try:
        if asked.action == "build":
            build()
        else:
            {"up": up, "down": down}[asked.action](asked.folder.absolute())
    except BedError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
