"""The objects that rendering starts from: the shipped manifests, or a profile's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import RequestError, nearest
from launcher.shipped import manifests_folder
from launcher.text_files import read_text
from launcher.yaml_reader import Reader

KINDS = {"training": "PyTorchJob", "evaluation": "Job", "pipeline": "Job"}
CONTAINERS = {"PyTorchJob": "pytorch", "Job": "llavajob"}
"""The container that llavajob fills; of a PyTorchJob the operator demands this name."""
_API = {"PyTorchJob": "kubeflow.org/v1", "Job": "batch/v1"}
_CLEAN_POD_POLICIES = ("None", "Running", "All")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def base_object(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return a fresh copy of the object that rendering starts from.

    Args:
        name: ``training``, ``evaluation`` or ``pipeline``.
        settings: what the profile says to Kubernetes, complete.

    Raises:
        RequestError: the profile's own is not there any more, or no longer one that can be filled.
    """
    own = settings["manifests"][name]
    path = Path(own) if own else manifests_folder() / f"{name}-job.yaml"
    try:
        return read_base(name, path)
    except ValueError as error:
        raise RequestError(f"kubernetes.manifests.{name}: {error}") from None


def read_base(name: str, path: Path) -> dict[str, Any]:
    """Read a base object.

    Raises:
        ValueError: with what is wrong in it, all at once.
    """
    try:
        text = read_text(path)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    reader = Reader(str(path))
    if not reader.measure(text):
        raise ValueError(f"{path} is {reader.problems[0].message}")
    try:
        found = list(yaml.load_all(text, Loader=_LOADER))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    kind = KINDS[name]
    base = found[0] if len(found) == 1 else None
    if base is not None and reader.read(text) is None:
        raise ValueError(f"{path} is not valid: {'; '.join(problem.message for problem in reader.problems[:5])}")
    if not isinstance(base, dict) or (base.get("apiVersion"), base.get("kind")) != (_API[kind], kind):
        raise ValueError(f"{path} is not one {kind} of {_API[kind]}")
    try:
        wrong = list(_training_errors(base) if kind == "PyTorchJob" else _job_errors(base))
    except (AttributeError, KeyError, TypeError):
        wrong = [f"no pod template is where a {kind} has it"]
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    return base


def _training_errors(base: dict[str, Any]) -> Iterator[str]:
    """What the operator accepts without a word and then does not do, or does otherwise than llavajob relies on."""
    spec = base["spec"]
    replicas, policy = spec["pytorchReplicaSpecs"], spec.get("runPolicy") or {}
    clean = policy.get("cleanPodPolicy", "Running")
    if clean not in _CLEAN_POD_POLICIES:
        allowed = ", ".join(_CLEAN_POD_POLICIES)
        yield f"cleanPodPolicy is {clean!r}; one of {allowed} is needed{nearest(str(clean), _CLEAN_POD_POLICIES)}"
    if "elasticPolicy" in spec:
        yield "elasticPolicy has torchrun form the gang; llavajob does that itself: leave it out"
    if "backoffLimit" in policy:
        yield "runPolicy.backoffLimit also counts restarts that brought something; leave it out: the recipe has retries"
    if "Master" not in replicas or set(replicas) - {"Master", "Worker"}:
        yield f"pytorchReplicaSpecs has {', '.join(replicas)}; Master is needed, and Worker if need be"
    for name, replica in replicas.items():
        restart = replica.get("restartPolicy", "ExitCode")
        if restart != "ExitCode":
            yield f"{name}.restartPolicy is {restart!r}; llavajob starts a gang again with ExitCode alone"
        yield from _container_errors(f"{name} has", replica["template"], "pytorch")


def _job_errors(base: dict[str, Any]) -> Iterator[str]:
    restart = base["spec"]["template"]["spec"].get("restartPolicy", "Never")
    if restart != "Never":
        yield f"restartPolicy is {restart!r}; llavajob tells ends apart with Never alone"
    yield from _container_errors("it has", base["spec"]["template"], "llavajob")


def _container_errors(who: str, template: dict[str, Any], wanted: str) -> Iterator[str]:
    names = [str(container["name"]) for container in template["spec"]["containers"]]
    if wanted not in names:
        yield f"{who} no container named '{wanted}', only {', '.join(names)}"
