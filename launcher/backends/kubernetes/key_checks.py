"""Checks of what a profile says to Kubernetes that a schema cannot do, each with the words that are right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from launcher.backends.kubernetes.bases import KINDS, read_base
from launcher.backends.kubernetes.labels import MANAGED_LABEL, OURS, QUEUE_LABEL
from launcher.backends.kubernetes.quantities import parse_cpu, parse_size
from launcher.backends.kubernetes.syntax import (
    DNS_1123_RULE,
    KEY_RULE,
    SUBDOMAIN_RULE,
    VALUE_RULE,
    is_absolute,
    is_dns_1123,
    is_image,
    is_label_key,
    is_label_value,
    is_secret_key,
    is_subdomain,
    is_variable,
)
from launcher.backends.kubernetes.volumes import volume_problems
from launcher.errors import Problem, nearest
from launcher.tree import Tree

_TOLERATION: dict[str, tuple[str, ...]] = {
    "key": (),
    "operator": ("Exists", "Equal"),
    "value": (),
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    "tolerationSeconds": (),
}
_Rule = tuple[Callable[[str], bool], str]
_NAMES: dict[str, _Rule] = {
    "namespace": (is_dns_1123, DNS_1123_RULE),
    "service_account": (is_subdomain, SUBDOMAIN_RULE),
    "priority_class": (is_subdomain, SUBDOMAIN_RULE),
    "scheduler": (is_subdomain, SUBDOMAIN_RULE),
    "queue": (is_subdomain, SUBDOMAIN_RULE),
    "gpu_resource": (lambda text: "/" in text and is_label_key(text), "a domain and a name, such as nvidia.com/gpu"),
    "runs": (is_absolute, "a full path in pods, such as /runs"),
    "image": (is_image, "the name of an image, without spaces"),
}
_NEEDED = ("service_account", "gpu_resource")


def _names(tree: Tree) -> Iterator[Problem]:
    for key, (fits, rule) in _NAMES.items():
        value = tree.get((key,))
        if isinstance(value, str) and (value or key in _NEEDED) and not (value and fits(value)):
            yield Problem(tree.origin((key,)), f"kubernetes.{key} is {value!r}; needed: {rule}")
    secrets = tree.get(("pull_secrets",))
    for number, name in enumerate(secrets if isinstance(secrets, list) else ()):
        if isinstance(name, str) and not is_subdomain(name):
            origin = tree.origin(("pull_secrets", str(number)))
            yield Problem(origin, f"kubernetes.pull_secrets: {name!r} is no name; needed: {SUBDOMAIN_RULE}")


def _image_folders(tree: Tree) -> Iterator[Problem]:
    folders = tree.get(("image_folders",))
    for number, folder in enumerate(folders if isinstance(folders, list) else ()):
        if isinstance(folder, str) and not is_absolute(folder):
            text = f"kubernetes.image_folders: {folder!r} is not a full path in the image, such as /opt/weights"
            yield Problem(tree.origin(("image_folders", str(number))), text)


def _sizes(tree: Tree) -> Iterator[Problem]:
    for key, parse in {"cpu": parse_cpu, "memory": parse_size, "shm": parse_size}.items():
        value = tree.get((key,))
        try:
            if isinstance(value, str | int | float) and value != "":
                parse(str(value))
        except ValueError as error:
            yield Problem(tree.origin((key,)), f"kubernetes.{key} is {value!r}; {error}")


def _tolerations(tree: Tree) -> Iterator[Problem]:
    entries = tree.get(("tolerations",))
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        for text in _toleration_errors(entry) if isinstance(entry, dict) else ():
            yield Problem(tree.origin(("tolerations", str(number))), f"kubernetes.tolerations.{number}{text}")


def _toleration_errors(entry: dict[str, Any]) -> Iterator[str]:
    for key, value in entry.items():
        allowed = _TOLERATION.get(key)
        if allowed is None:
            yield f": unknown key '{key}'{nearest(key, _TOLERATION) or '; allowed: ' + ', '.join(_TOLERATION)}"
        elif allowed and value not in allowed:
            yield f".{key} is {value!r}; one of {', '.join(allowed)} is needed{nearest(str(value), allowed)}"
        elif key == "tolerationSeconds" and not isinstance(value, int):
            yield f".{key} is {value!r}; a whole number is needed"
        elif key in ("key", "value") and not isinstance(value, str):
            yield f".{key} is {value!r}; text is needed, in quotes where it looks like something else"
        elif key == "key" and value and not is_label_key(value):
            yield f".{key} is {value!r}; needed: {KEY_RULE}"
        elif key == "value" and not is_label_value(value):
            yield f".{key} is {value!r}; needed: {VALUE_RULE}"
    if not entry.get("key") and entry.get("operator") != "Exists":
        yield ": a key is needed, or operator: Exists for every taint"
    if entry.get("operator") == "Exists" and entry.get("value"):
        yield ": operator Exists takes no value"


def _secrets(tree: Tree) -> Iterator[Problem]:
    for name, value in _entries(tree, "secrets"):
        origin = tree.origin(("secrets", name))
        if not is_variable(name):
            yield Problem(origin, f"kubernetes.secrets: {name!r} is no name of an environment variable")
        if not is_secret_key(value):
            yield Problem(
                origin, f"kubernetes.secrets.{name}: name/key of a secret is needed, such as hugging-face/token"
            )


def _labels(tree: Tree) -> Iterator[Problem]:
    for group in ("labels", "annotations", "node_selector"):
        for key, value in _entries(tree, group):
            text = _owned(group, key) or (f"{key!r} is no key; needed: {KEY_RULE}" if not is_label_key(key) else "")
            if text:
                yield Problem(tree.origin((group, key)), f"kubernetes.{group}: {text}")
            if group != "annotations" and not is_label_value(value):
                text = f"kubernetes.{group}.{key} is {value!r}; needed: {VALUE_RULE}"
                yield Problem(tree.origin((group, key)), text)


def _owned(group: str, key: str) -> str:
    if group == "node_selector":
        return ""
    if key == QUEUE_LABEL:
        return f"{key} has a key of its own: kubernetes.queue"
    domain = key.rpartition("/")[0] or key
    return f"{key} is set by llavajob and cannot be changed" if domain in OURS or key == MANAGED_LABEL else ""


def _manifests(tree: Tree) -> Iterator[Problem]:
    for name, value in _entries(tree, "manifests"):
        try:
            if value and name in KINDS:
                read_base(name, Path(value))
        except ValueError as error:
            yield Problem(tree.origin(("manifests", name)), f"kubernetes.manifests.{name}: {error}")


def _entries(tree: Tree, group: str) -> list[tuple[str, str]]:
    """The entries of a mapping that are text; what is not, the schema names."""
    values = tree.get((group,))
    return [(str(k), v) for k, v in values.items() if isinstance(v, str)] if isinstance(values, dict) else []


CHECKS: tuple[Callable[[Tree], Iterable[Problem]], ...] = (
    _names,
    _image_folders,
    _sizes,
    volume_problems,
    _tolerations,
    _secrets,
    _labels,
    _manifests,
)
