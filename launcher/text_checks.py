"""Text that cannot go on to files, processes and schedulers: found where it was written, before anything is sent."""

from __future__ import annotations

import re
import unicodedata

from launcher.errors import Problem
from launcher.tree import Tree, leaves, walk

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
VARIABLE_RULE = "letters, digits and _ are needed, no digit first"


def flaw(text: str, one_line: bool = False) -> str:
    """Say what keeps a text from being passed on; empty when nothing does.

    Args:
        text: the text.
        one_line: whether it is a name or a path, in which control characters and line breaks are mistakes.
    """
    if "\0" in text:
        return "has a NUL character in it"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "is not UTF-8 text, as plans and records are"
    if one_line and any(unicodedata.category(letter) == "Cc" for letter in text):
        return "has a line break or another control character in it"
    return ""


def text_problems(tree: Tree) -> list[Problem]:
    """List the texts of a recipe or a profile that cannot be passed on, and environment variables without a name."""
    problems = []
    for key, value in leaves(tree.values):
        texts = [part for _, part in walk(value) if isinstance(part, str)]
        for text in [*key, *texts]:
            if flaw(text):
                problems.append(Problem(tree.origin(key), f"{'.'.join(key)} {flaw(text)}"))
                break
    environment = tree.get(("environment",))
    for name in environment if isinstance(environment, dict) else ():
        if not _VARIABLE.fullmatch(name):
            text = f"environment: {name!r} cannot be the name of a variable: {VARIABLE_RULE}"
            problems.append(Problem(tree.origin(("environment", name)), text))
    return problems
