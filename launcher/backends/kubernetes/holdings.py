"""What a namespace and its cluster hold for a profile: nodes with GPUs, volumes, secrets, the pipeline's account."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from launcher.backends.kubernetes.client import KINDS, Client, Object
from launcher.backends.kubernetes.quantities import parse_cpu, parse_size
from launcher.backends.kubernetes.refusals import Forbidden
from launcher.backends.kubernetes.settings import runs_in_pods
from launcher.backends.kubernetes.volumes import covering_volume
from launcher.doctor import Finding
from launcher.profiles import Profile

_CONDUCTS = tuple((verb, kind) for kind in ("PyTorchJob", "Job") for verb in ("create", "get"))
"""What the conductor of a pipeline does."""
_ACCOUNT_FILE = "manifests/service-account.yaml"
_MANY = "ReadWriteMany"


# Nodes


def examine_nodes(client: Client, profile: Profile) -> Iterator[Finding]:
    """Look for nodes that can give what each pod of a training asks for."""
    place = profile.settings
    nodes = [node for node in client.list("Node") if _is_open(node)]
    fitting = [node for node in nodes if place["node_selector"].items() <= _labels(node).items()]
    if not fitting:
        cure = "See kubectl get nodes --show-labels" if place["node_selector"] else "Its administrator looks."
        labels = " with the labels of kubernetes.node_selector" if place["node_selector"] else ""
        yield Finding("nodes", f"none of {len(nodes)} that are open{labels}", False, cure)
        return
    yield from _gpus(fitting, place["gpu_resource"], profile.values.get(("resources", "gpus_per_node")))
    for key, resource, parse in (("cpu", "cpu", parse_cpu), ("memory", "memory", parse_size)):
        yield from _size(key, str(place[key] or ""), [_offered(node, resource) for node in fitting], parse)


def _is_open(node: Object) -> bool:
    """Whether a node is ready and takes pods."""
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
    return ready and not (node.get("spec") or {}).get("unschedulable")


def _labels(obj: Object) -> dict[str, str]:
    return obj["metadata"].get("labels") or {}


def _offered(node: Object, resource: str) -> str:
    return str(((node.get("status") or {}).get("allocatable") or {}).get(resource) or "0")


def _gpus(nodes: Sequence[Object], resource: str, wanted: Any) -> Iterator[Finding]:
    numbers = Counter(number for node in nodes if (number := int(_offered(node, resource))))
    if not numbers:
        offered = {name for node in nodes for name in (node.get("status") or {}).get("allocatable") or {}}
        others = sorted(name for name in offered if "gpu" in name)
        cure = f"Set kubernetes.gpu_resource to {' or '.join(others)}." if others else ""
        cure = cure or "Install the GPUs' device plugin, unless an autoscaler adds nodes; no GPUs: --gpus-per-node 0."
        good = None if wanted == 0 or not (wanted or others) else False
        yield Finding("GPUs", f"no node offers {resource}", good, "" if wanted == 0 else cure)
        return
    counts = sorted(numbers.items(), reverse=True)
    rows = ", ".join(f"{count} node{'s' * (count > 1)} with {number}" for number, count in counts)
    if isinstance(wanted, int) and wanted > max(numbers):
        cure = f"Set values.resources.gpus_per_node in the profile to {max(numbers)} or less."
        yield Finding("GPUs", f"{wanted} of each node asked for; {rows} ({resource})", False, cure)
    else:
        yield Finding("GPUs", f"{rows} ({resource})")


def _size(key: str, wanted: str, offered: Sequence[str], parse: Callable[[str], int]) -> Iterator[Finding]:
    """Whether what the profile asks of a node is more than any has; the rest of a node is the cluster's own."""
    most = max(offered, key=parse)
    if wanted and parse(wanted) > parse(most):
        cure = f"Set kubernetes.{key} to less: nodes keep some of it for themselves."
        yield Finding(key, f"{wanted} asked for, nodes have {most}", False, cure)


# Volumes


def examine_volumes(client: Client, profile: Profile) -> Iterator[Finding]:
    """Look at the claims behind the profile's volumes, and at what keeps the runs."""
    place = profile.settings
    folder, shared = runs_in_pods(profile.runs, place)
    holder = covering_volume(place, folder)
    for entry in place["volumes"]:
        yield _volume(client, entry, entry is holder)
    if holder is None:
        cure = f"Add a volume to kubernetes.volumes that is mounted at {folder} or above it."
        yield Finding("runs in pods", f"no volume of the profile keeps {folder}", None, cure)
    elif not shared:
        seen = f"{folder}; it is not seen here, so logs and small files are copied to {profile.runs}"
        yield Finding("runs in pods", seen, True)


def _volume(client: Client, entry: dict[str, Any], keeps_runs: bool) -> Finding:
    what = f"volume {entry['mount']}"
    if "pvc" not in entry:
        source = next(key for key in ("host_path", "nfs", "empty_dir") if key in entry)
        own = source == "host_path" and keeps_runs
        each = "; each node's own, unless it is a shared file system" if own else ""
        return Finding(what, f"{source} {entry[source]}{each}", None if own else True)
    name = entry["pvc"]
    try:
        claim = client.get("PersistentVolumeClaim", name)
    except Forbidden as error:
        return Finding(what, f"the claim {name} cannot be looked at: {error.message}", None)
    if claim is None:
        cure = (
            "Create it: kubectl apply -f manifests/runs-volume.yaml, its name and size changed; or kubernetes.volumes."
        )
        return Finding(what, f"there is no claim {name} in namespace {client.namespace}", False, cure)
    return _claim(what, claim, keeps_runs)


def _claim(what: str, claim: Object, keeps_runs: bool) -> Finding:
    name, phase = claim["metadata"]["name"], (claim.get("status") or {}).get("phase")
    modes = (claim.get("status") or {}).get("accessModes") or (claim.get("spec") or {}).get("accessModes") or []
    size = ((claim.get("status") or {}).get("capacity") or {}).get("storage") or "?"
    if phase == "Lost":
        return Finding(what, f"claim {name} has lost its volume", False, "Ask the storage's administrator.")
    if phase != "Bound":
        cure = f"Where it waits for its first pod, that is all right; else see: kubectl describe pvc {name}"
        return Finding(what, f"claim {name} is {phase or 'new'}: it has no volume yet", None, cure)
    seen = f"claim {name}, {size}, {', '.join(modes)}"
    if keeps_runs and _MANY not in modes:
        cure = f"Pods on several nodes need a claim with {_MANY}; one node does not."
        return Finding(what, seen, None, cure)
    return Finding(what, seen)


# Secrets


def examine_secrets(client: Client, profile: Profile) -> Iterator[Finding]:
    """Look whether the secrets that are named are there, with their keys; their values are not looked at."""
    place = profile.settings
    wanted: dict[str, set[str]] = {name: set() for name in place["pull_secrets"]}
    for source in place["secrets"].values():
        name, _, key = source.partition("/")
        wanted.setdefault(name, set()).add(key)
    for name, keys in wanted.items():
        yield _secret(client, name, keys)


def _secret(client: Client, name: str, keys: set[str]) -> Finding:
    try:
        found = client.get("Secret", name)
    except Forbidden:
        return Finding(f"secret {name}", "secrets are not yours to see; a pod that lacks it will say so", None)
    if found is None:
        cure = f"Create it: kubectl create secret generic {name} --from-file=..."
        return Finding(f"secret {name}", f"it is not in namespace {client.namespace}", False, cure)
    absent = sorted(keys - set(found.get("data") or {}))
    if absent:
        cure = f"It has: {', '.join(sorted(found.get('data') or {})) or 'none'}"
        return Finding(f"secret {name}", f"it has no key {', '.join(absent)}", False, cure)
    return Finding(f"secret {name}", f"there, with {', '.join(sorted(keys))}" if keys else "there")


# The account that pipelines run as


def examine_account(client: Client, profile: Profile) -> Iterator[Finding]:
    """Look at the pipeline's service account and its rights."""
    name = profile.settings["service_account"]
    cure = f"Pipelines need it, single stages do not: kubectl apply -n {client.namespace} -f {_ACCOUNT_FILE}"
    if client.get("ServiceAccount", name) is None:
        yield Finding(f"account {name}", f"it is not in namespace {client.namespace}", None, cure)
        return
    missing = _missing_rights(client, name)
    if missing is None:
        yield Finding(f"account {name}", "there; its rights are not yours to see", None)
    elif missing:
        yield Finding(f"account {name}", f"it may not {', '.join(missing)}", False, cure)
    else:
        yield Finding(f"account {name}", "there, with the rights that a pipeline needs")


def _missing_rights(client: Client, account: str) -> list[str] | None:
    """What the account may not do: the server's word, or what bindings say; None where neither can be had."""
    try:
        allowed = [client.may(verb, KINDS[kind][1], _group(kind), account=account) for verb, kind in _CONDUCTS]
    except Forbidden:
        try:
            rules = _rules(client, account)
        except Forbidden:
            return None
        allowed = [_granted(rules, verb, KINDS[kind][1], _group(kind)) for verb, kind in _CONDUCTS]
    pairs = zip(_CONDUCTS, allowed, strict=True)
    return [f"{verb} {KINDS[kind][1]}.{_group(kind)}" for (verb, kind), good in pairs if not good]


def _group(kind: str) -> str:
    return KINDS[kind][0].rpartition("/")[0]


def _rules(client: Client, account: str) -> list[Object]:
    """The rules that bindings of the namespace give to an account."""
    rules: list[Object] = []
    for binding in client.list("RoleBinding"):
        subjects = binding.get("subjects") or []
        if not any(_is_account(subject, account, client.namespace) for subject in subjects):
            continue
        role = binding["roleRef"]
        path = f"/apis/{KINDS['Role'][0]}"
        path += "/clusterroles/" if role["kind"] == "ClusterRole" else f"/namespaces/{client.namespace}/roles/"
        rules += (client.look(path + role["name"]) or {}).get("rules") or []
    return rules


def _is_account(subject: Object, account: str, namespace: str) -> bool:
    if subject.get("kind") == "ServiceAccount":
        return subject.get("name") == account and subject.get("namespace", namespace) == namespace
    everyone = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return subject.get("kind") == "Group" and subject.get("name") in everyone


def _granted(rules: Sequence[Object], verb: str, resource: str, group: str) -> bool:
    def has(rule: Object, key: str, value: str) -> bool:
        return bool({value, "*"} & set(rule.get(key) or []))

    return any(
        has(rule, "verbs", verb) and has(rule, "resources", resource) and has(rule, "apiGroups", group)
        for rule in rules
        if not rule.get("resourceNames")
    )
