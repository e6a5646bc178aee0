"""Reading YAML that a person wrote: plain values with their lines, within limits, every mistake with its line.

YAML of one kilobyte can stand for billions of values (aliases of aliases), and a parser that recurses can be made to
overflow its stack. So the events are counted first, which needs no recursion, and then what is built from them.
"""

from __future__ import annotations

from typing import Any

import yaml

from launcher.errors import Problem

Key = tuple[str, ...]
"""Path of a value: ``("train", "epochs")``; list items count as ``"0"``, ``"1"`` ..."""
MOST_VALUES = 20_000
"""Values in one file, aliases written out. The largest shipped recipe has about a hundred."""
DEEPEST = 50
"""Mappings and lists inside each other."""
LONGEST_KEY = 200
LARGEST_NUMBER = 2**63
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _TooMuch(Exception):
    """A limit was passed: reading stops here."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Reader:
    """Builds plain values from YAML text; afterwards ``problems`` tells whether they can be used."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        """How the text is named in messages."""
        self.origins: dict[Key, str] = {}
        self.problems: list[Problem] = []
        self._built = 0

    def read(self, text: str) -> Any:
        """Return the text's value; None where there are problems, or nothing is in it."""
        if not self.measure(text):
            return None
        try:
            node = yaml.compose(text, Loader=_LOADER)
            return None if node is None else self._build(node, ())
        except yaml.YAMLError as error:
            self.problems.append(self._yaml_problem(error))
        except _TooMuch as error:
            self.problems.append(error.problem)
        return None

    def measure(self, text: str) -> bool:
        """Tell whether the text is YAML of a size that can be read, before anything is made of it."""
        try:
            self._count_events(text)
        except yaml.YAMLError as error:
            self.problems.append(self._yaml_problem(error))
        except _TooMuch as error:
            self.problems.append(error.problem)
        return not self.problems

    def _count_events(self, text: str) -> None:
        values, depth = 0, 0
        for event in yaml.parse(text, Loader=_LOADER):
            line = event.start_mark.line if event.start_mark else 0
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if isinstance(event, yaml.NodeEvent):
                values += 1
            if depth > DEEPEST:
                raise self._too_deep(line)
            if values > 2 * MOST_VALUES:  # keys count here, too
                raise self._too_many(line)

    def _build(self, node: yaml.Node, key: Key) -> Any:
        line = node.start_mark.line
        self._built += 1
        if self._built > MOST_VALUES:
            raise self._too_many(line)
        if len(key) > DEEPEST:
            raise self._too_deep(line)
        self.origins.setdefault(key, self._where(line))
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTIONS:
            self._add(line, f"not valid YAML: {_short(node.tag)} is no tag of a mapping or a list in a recipe")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*key, str(number))) for number, item in enumerate(node.value)]
        return self._scalar(node, key)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name_node, child in node.value:
            line = name_node.start_mark.line
            if not isinstance(name_node, yaml.ScalarNode):
                self._add(line, "a key must be text; a list or a mapping stands here")
                continue
            name = str(name_node.value)
            if len(name) > LONGEST_KEY:
                self._add(line, f"a key of {len(name)} characters; {LONGEST_KEY} are the most")
                continue
            if "\0" in name:
                self._add(line, f"key {name!r} has a NUL character in it")
                continue
            if name in values:
                self._add(line, f"key '{name}' stands here a second time")
            path = (*key, name)
            self.origins[path] = self._where(line)
            values[name] = self._build(child, path)
        return values

    def _scalar(self, node: yaml.Node, key: Key) -> Any:
        text, line = str(node.value), node.start_mark.line
        if "\0" in text:
            self._add(line, f"{_named(key)} has a NUL character in it, which no file, process or job can take")
            return None
        if node.tag.endswith((":int", ":float")) and ":" in text:
            return text  # YAML 1.1 would make 43200 of a time limit of 12:00:00
        try:
            value = yaml.SafeLoader("").construct_object(node, deep=True)
        except yaml.YAMLError as error:
            self.problems.append(self._yaml_problem(error))
            return None
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            kind = node.tag.rpartition(":")[2]
            self._add(line, f"not valid YAML: {_short(text)!r} cannot be read as {kind}; put text in quotes")
            return None
        return self._plain(value, text, key, line)

    def _plain(self, value: Any, text: str, key: Key, line: int) -> Any:
        """A value that recipes can have: text, a number, true or false, null."""
        if value is not None and not isinstance(value, str | int | float):
            what = type(value).__name__
            self._add(line, f"{_named(key)} is {_short(text)!r}, which YAML reads as {what}; put text in quotes")
            return None
        if isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
            self._add(line, f"{_named(key)} is {_short(text)}; the number is too large")
            return None
        return value

    def _add(self, line: int, message: str) -> None:
        self.problems.append(Problem(self._where(line), message))

    def _where(self, line: int) -> str:
        return f"{self.shown}:{line + 1}"

    def _too_many(self, line: int) -> _TooMuch:
        text = f"more than {MOST_VALUES:,} values are in it, aliases written out"
        return _TooMuch(Problem(self._where(line), text))

    def _too_deep(self, line: int) -> _TooMuch:
        text = f"more than {DEEPEST} mappings and lists are inside each other, or an alias is inside what it names"
        return _TooMuch(Problem(self._where(line), text))

    def _yaml_problem(self, error: yaml.YAMLError) -> Problem:
        mark = getattr(error, "problem_mark", None)
        where = self._where(mark.line) if mark else self.shown
        return Problem(where, f"not valid YAML: {getattr(error, 'problem', None) or error}")


def read_value(text: str) -> Any:
    """Read one value typed on a command line.

    Raises:
        ValueError: it is not valid YAML, or beyond what a recipe may hold.
    """
    reader = Reader("value")
    value = reader.read(text)
    if reader.problems:
        raise ValueError(reader.problems[0].message)
    return value


def _named(key: Key) -> str:
    return ".".join(key) or "the value"


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
