"""Secrets in clear: what a recipe, a profile or the command line would have written into files and sent along."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher import console
from launcher.backends.kubernetes.bases import read_base
from launcher.errors import Problem, RecipeError
from launcher.profiles import Profile
from launcher.recipe import Recipe, Stage
from launcher.run_folder import RunFolder, read_json
from launcher.secret_looks import secret_in, why_secret
from launcher.secret_values import secret_names
from launcher.tree import Tree, leaves, walk

_ASSIGNMENT = re.compile(r"""(?<![\w$-])([A-Za-z_]\w*)=("[^"]*"|'[^']*'|[^\s;&|"']+)""")
_FROM_ELSEWHERE = ("$", "`", "<")
"""How a value begins that a shell looks up when it runs."""
_DEFAULT, _REFERENCE = re.compile(r"\$\{env:[^{}:]*:-([^{}]*)\}"), re.compile(r"\$\{[^{}]*\}")
_SHELL_VARIABLE = re.compile(r"(?<!\$)\$\{\s*env:([^{}:]+?)\s*(?::-[^{}]*)?\}")
_SHELL_KEYS = ("setup", "container")


def refuse_clear_secrets(recipe: Recipe, stages: Sequence[Stage], profile: Profile, folder: RunFolder) -> None:
    """Refuse a request that would write a secret down; the message never holds the value.

    A run that an earlier version submitted with one goes on: it stands in the run's folder already.

    Raises:
        RecipeError: with every place where one stands, and how to name a secret to this backend.
    """
    problems = list(dict.fromkeys(_problems(recipe, stages, profile)))
    if not problems:
        return
    record = read_json(folder.record)
    if record is not None and not record.get("run_id"):
        for problem in problems:
            console.say(f"Warning: {problem.where}: {problem.message}")
        return
    raise RecipeError(problems, _hint(profile, problems))


def _problems(recipe: Recipe, stages: Sequence[Stage], profile: Profile) -> Iterator[Problem]:
    allowed, named = set(profile.not_secret), set(secret_names(profile.settings))
    places = [("environment", profile.environment, profile.environment_origins)]
    for tree in (recipe.tree, *(stage.tree for stage in stages)):
        values = tree.get(("environment",))
        if isinstance(values, dict):
            places.append(("environment", values, {name: tree.origin(("environment", name)) for name in values}))
    for what, values, origins in places:
        for name, value in values.items():
            where = origins.get(name, profile.source)
            if name in named:
                yield Problem(where, f"{what}.{name} is named as a secret as well; leave it out here")
            elif name not in allowed:
                yield from _problem(where, f"{what}.{name}", why_secret(name, _written_out(str(value))))
    for tree in (recipe.tree, profile.values):
        yield from _taken_from_shell(tree, allowed)
    for tree in (recipe.tree, *(stage.tree for stage in stages), profile.values):
        yield from _in_other_keys(tree, allowed)
    yield from _in_settings(profile, allowed)
    if profile.backend == "kubernetes":
        yield from _in_manifests(profile, allowed)


def _written_out(text: str) -> str:
    """What a text itself says where it refers to other values: the defaults; what they come to is checked as well."""
    return _REFERENCE.sub("", _DEFAULT.sub(r"\1", text)) if "${" in text else text


def _problem(where: str, what: str, why: str) -> Iterator[Problem]:
    if why:
        yield Problem(where, f"{what} looks like a secret ({why}) and would stand in clear in the run's files")


def _taken_from_shell(tree: Tree, allowed: set[str]) -> Iterator[Problem]:
    """Values that refer to a variable of the shell which holds a secret, whatever their own key is called."""
    for key, value in leaves(tree.values):
        for name in _SHELL_VARIABLE.findall("\n".join(_texts(value))):
            if name not in allowed and not {key[-1]} & allowed:
                why = why_secret(name, os.environ.get(name, ""))
                yield from _problem(tree.origin(key), ".".join(key), why and f"of ${{env:{name}}}, {why}")


def _in_other_keys(tree: Tree, allowed: set[str]) -> Iterator[Problem]:
    """Known credentials in any other value; names and randomness mean less there."""
    for key, value in leaves(tree.values):
        # A stage of a pipeline has an environment of its own, checked with the stage.
        if not key or "environment" in (key[0], *key[2:3]):
            continue
        for text in _texts(value):
            if key[-1] not in allowed:
                yield from _problem(tree.origin(key), ".".join(key), secret_in(text))


def _in_settings(profile: Profile, allowed: set[str]) -> Iterator[Problem]:
    """What the profile says to its backend: shell lines that set a variable, and known credentials anywhere."""
    tree = profile.place
    for key, value in leaves(tree.values):
        if not key or "secrets" in key or key[-1] in allowed:
            continue
        for text in _texts(value):
            why = secret_in(text)
            if key[-1] in _SHELL_KEYS or key[-2:-1] == ("extra",):
                why = _in_assignments(text, allowed)
            elif key[-2:-1] in (("labels",), ("annotations",)):
                why = why_secret(key[-1].rpartition("/")[2], text)
            yield from _problem(tree.origin(key), ".".join(key), why)


def _in_manifests(profile: Profile, allowed: set[str]) -> Iterator[Problem]:
    """The environment of containers in a profile's own base objects."""
    for name, path in profile.settings["manifests"].items():
        for _, node in walk(read_base(name, Path(path)) if path else None):
            variable, value = (node.get("name"), node.get("value")) if isinstance(node, dict) else (None, None)
            if isinstance(variable, str) and isinstance(value, str) and variable not in allowed:
                yield from _problem(path, f"the environment variable {variable}", why_secret(variable, value))


def _in_assignments(line: str, allowed: set[str]) -> str:
    """Why a shell line holds a secret; a variable that may stand in clear is passed over."""
    rest = line
    for match in _ASSIGNMENT.finditer(line):
        name, value = match[1], match[2].strip("\"'")
        if name in allowed:
            rest = rest.replace(match[0], "")
        elif value and not value.startswith(_FROM_ELSEWHERE):
            why = why_secret(name, value)
            if why:
                return why
    return secret_in(rest)


def _texts(value: Any) -> list[str]:
    """The texts in a leaf: itself, or those in its list."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return []
    return [text for item in value for _, leaf in leaves(item) for text in _texts(leaf)]


_HOW = {
    "local": ("secrets: [{name}]", "its value is taken from the shell at submit"),
    "slurm": ("slurm: {{secrets: [{name}]}}", "its value is taken from the shell at submit"),
    "kubernetes": ("kubernetes: {{secrets: {{{name}: SECRET/KEY}}}}", "its value is taken from that Secret"),
}


def _hint(profile: Profile, problems: Sequence[Problem]) -> str:
    found = re.search(r"environment(?:\.| variable )(\w+)", problems[0].message)
    name = found[1] if found else "NAME"
    key, how = _HOW[profile.backend]
    return (
        f"Leave it out there and name it in the profile '{profile.name}' instead: {key.format(name=name)}; {how}.\n"
        f"If it is no secret: not_secret: [{name}] in that profile."
    )
