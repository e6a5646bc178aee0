"""The programs of the Kubernetes test bed: built from Go modules and unpacked from Debian packages, once.

They lie in a cache outside the tree, one folder for each part and version. A part is made beside its place and renamed
when it is whole, so a torn build is never used, and a build that was broken off goes on with the part it was at.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.slurm.bed import BedError, apt

KUBERNETES, STAGING = "v1.33.13", "v0.33.13"
TRAINING_OPERATOR = "v1.9.4"
COREDNS = "v1.12.4"
# Debian mends a release's package without a new upstream version; what it mended is gone from the mirrors.
PACKAGES = {
    "etcd-server": "3.4.23*",
    "containerd": "1.6.20*",
    "runc": "1.1.5*",
    "containernetworking-plugins": "1.1.1*",
    "busybox-static": "1:1.35.0*",
}
KUBERNETES_COMMANDS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
OPERATOR_MODULE = "github.com/kubeflow/training-operator"
# The cache is read before any test runs: each test has a home of its own and loses variables that begin with LLAVAJOB_.
CACHE = Path(os.environ.get("LLAVAJOB_TEST_CACHE") or Path.home() / ".cache/llavajob-tests").absolute() / "kubernetes"
BUILD_LIMIT_S = 3600.0
ERROR_LENGTH = 2000


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """The standard output of a command at low priority; a BedError with the end of what it said where it fails."""
    done = subprocess.run(
        ["nice", *map(str, command)],
        cwd=cwd,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_LIMIT_S,
    )
    if done.returncode:
        raise BedError(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()[-ERROR_LENGTH:]}")
    return done.stdout


def go(*arguments: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """Run the go command for programs that need no library of the host."""
    return run("go", *arguments, cwd=cwd, CGO_ENABLED="0", GOFLAGS="-mod=mod -trimpath -buildvcs=false", **variables)


def module_folder(module: str, version: str) -> Path:
    """Where a module's source lies, downloaded if need be."""
    return Path(json.loads(go("mod", "download", "-json", f"{module}@{version}", cwd=Path("/")))["Dir"])


def build_kubernetes(place: Path) -> None:
    """Build Kubernetes' own commands in a module that stands in for its source tree."""
    # The released module replaces its parts by folders that it does not contain; they are modules of their own too.
    told = json.loads(go("mod", "edit", "-json", module_folder("k8s.io/kubernetes", KUBERNETES) / "go.mod"))
    parts = [item["Old"]["Path"] for item in told["Replace"] if item["New"]["Path"].startswith("./staging/")]
    with tempfile.TemporaryDirectory() as text:
        work = Path(text)
        go("mod", "init", "bed", cwd=work)
        pins = [f"-replace={part}={part}@{STAGING}" for part in parts]
        go("mod", "edit", f"-require=k8s.io/kubernetes@{KUBERNETES}", *pins, cwd=work)
        package, (major, minor, _) = "k8s.io/component-base/version", KUBERNETES[1:].split(".")
        named = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor}
        flags = " ".join(("-s -w", *(f"-X {package}.{name}={value}" for name, value in named.items())))
        commands = [f"k8s.io/kubernetes/cmd/{command}" for command in KUBERNETES_COMMANDS]
        go("build", f"-ldflags={flags}", "-o", f"{place}/", *commands, cwd=work)


def build_operator(place: Path) -> None:
    """Build the training operator, and keep its manifests beside it."""
    module = f"{OPERATOR_MODULE}/cmd/training-operator.v1@{TRAINING_OPERATOR}"
    go("install", "-ldflags=-s -w", module, cwd=place, GOBIN=str(place))
    shutil.copytree(
        module_folder(OPERATOR_MODULE, TRAINING_OPERATOR) / "manifests",
        place / "manifests",
        copy_function=shutil.copyfile,
    )
    for folder, _, _ in os.walk(place):
        os.chmod(folder, 0o755)


def build_coredns(place: Path) -> None:
    """Build the name server."""
    go("install", "-ldflags=-s -w", f"github.com/coredns/coredns@{COREDNS}", cwd=place, GOBIN=str(place))


def unpack_packages(place: Path) -> None:
    """Unpack Debian packages without installing them: no daemon of theirs starts."""
    with tempfile.TemporaryDirectory() as text:
        wanted = ("download", *(f"{name}={version}" for name, version in PACKAGES.items()))
        command = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root", *wanted)
        try:
            run(*command, cwd=Path(text))
        except BedError:
            # A new machine knows no packages before its first update.
            apt("update")
            run(*command, cwd=Path(text))
        for package in sorted(Path(text).glob("*.deb")):
            run("dpkg-deb", "--extract", package, place)


def parts() -> dict[str, Callable[[Path], None]]:
    """Each part's folder in the cache, and what fills it."""
    pins = hashlib.sha256(json.dumps(PACKAGES).encode()).hexdigest()[:8]
    return {
        f"packages-{pins}": unpack_packages,
        f"coredns-{COREDNS}": build_coredns,
        f"training-operator-{TRAINING_OPERATOR}": build_operator,
        f"kubernetes-{KUBERNETES}": build_kubernetes,
    }


def unbuilt() -> list[str]:
    """The parts that the cache lacks."""
    return [part for part in parts() if not (CACHE / part).is_dir()]


def missing_programs() -> str | None:
    """Why no bed can start before a build, or None."""
    lacking = unbuilt()
    return f"not built: {', '.join(lacking)} (python -m tests.kubernetes.bed build)" if lacking else None


def missing_tools() -> str | None:
    """Why the programs cannot be built here, or None."""
    absent = [tool for tool in ("go", "apt-get", "dpkg-deb", "nice") if shutil.which(tool) is None]
    return f"building the test bed's programs needs {', '.join(absent)}" if absent else None


@contextlib.contextmanager
def builder() -> Iterator[None]:
    """Be the only builder of this cache; wait for another one to finish."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(say: Callable[[str], None] = print) -> None:
    """Fill the cache with what it lacks."""
    with builder():
        for torn in CACHE.glob("*.torn"):
            shutil.rmtree(torn)
        for part in unbuilt():
            say(f"{part}: building")
            begun = time.monotonic()
            fresh = CACHE / f"{part}.torn"
            fresh.mkdir()
            parts()[part](fresh)
            fresh.rename(CACHE / part)
            say(f"{part}: {time.monotonic() - begun:.0f} s")
        say(f"everything is in {CACHE}")


def programs() -> Mapping[str, Path]:
    """Where each program of the bed lies in the filled cache."""
    packages, coredns, operator, kubernetes = (CACHE / part for part in parts())
    return {
        **{name: packages / "usr/bin" / name for name in ("etcd", "containerd", "ctr")},
        "runc": packages / "usr/sbin/runc",
        "cni": packages / "usr/lib/cni",
        "busybox": packages / "bin/busybox",
        "coredns": coredns / "coredns",
        "training-operator": operator / "training-operator.v1",
        "manifests": operator / "manifests",
        **{name: kubernetes / name for name in KUBERNETES_COMMANDS},
    }
