"""Checking a tree against a JSON schema: defaults filled in, values typed, all problems found at once.

The part of JSON schema that ``llava schema`` exports is understood: types, enums, bounds, nullable values, nested
objects, lists. A full validator would cost more start-up time than the whole command line is allowed.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from launcher.errors import Problem, nearest
from launcher.secret_looks import MASK, mask, why_secret
from launcher.tree import Key, Tree
from launcher.yaml_reader import LARGEST_NUMBER, read_value

Schema = Mapping[str, Any]
_MOST_UNKNOWN = 50
"""Unknown keys of one mapping that are named, each with what was meant."""
_RUNTIME_FILE = Path(__file__).with_name("runtime_schema.json")


@cache
def runtime_schema() -> dict[str, Any]:
    """The schema of a config.yaml, exported from the runtime; a test holds it equal to the runtime's own."""
    loaded: dict[str, Any] = json.loads(_RUNTIME_FILE.read_text(encoding="utf-8"))
    return loaded


@cache
def job_schema(kind: str) -> dict[str, Any]:
    """The schema of one kind of job, with its references resolved."""
    whole = runtime_schema()
    reference = whole["discriminator"]["mapping"][kind]
    resolved: dict[str, Any] = _resolved(whole["$defs"][reference.rsplit("/", 1)[1]], whole["$defs"])
    return resolved


def job_kinds() -> list[str]:
    """The kinds of job that the runtime knows."""
    return list(runtime_schema()["discriminator"]["mapping"])


def _resolved(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            target = dict(definitions[schema["$ref"].rsplit("/", 1)[1]])
            target.update({k: v for k, v in schema.items() if k != "$ref"})
            return _resolved(target, definitions)
        return {key: _resolved(value, definitions) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_resolved(value, definitions) for value in schema]
    return schema


def describe(schema: Schema) -> str:
    """Say in words what a schema allows."""
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(str(v) for v in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(describe(option) for option in schema["anyOf"])
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false",
             "null": "null", "array": "a list", "object": "a mapping"}  # fmt: skip
    text = words.get(str(schema.get("type")), "a value")
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {_number_text(schema[name])}" for name, word in bounds.items() if name in schema]
    return " ".join([text, " and ".join(limits)]).strip()


def _number_text(number: float) -> str:
    return f"{number:g}" if number < 1e6 else f"{number:,.0f}"


def fill_defaults(tree: Tree, schema: Schema, key: Key = ()) -> None:
    """Put the schema's defaults where the tree is silent; only inside mappings that are there or have a default."""
    for name, child in schema.get("properties", {}).items():
        path = (*key, name)
        parent = tree.get(key) if key else tree.values
        if not isinstance(parent, dict):
            return
        if name not in parent and "default" in child:
            tree.set(path, copy.deepcopy(child["default"]), "default")
        if isinstance(tree.get(path), dict):
            fill_defaults(tree, child, path)


def check(tree: Tree, schema: Schema, problems: list[Problem], key: Key = ()) -> None:
    """Type every value by the schema, in place, and collect what does not fit."""
    values = tree.get(key) if key else tree.values
    unknown = [n for n in values if n not in schema.get("properties", {})]
    for name in unknown[:_MOST_UNKNOWN]:
        problems.append(_unknown(tree, (*key, str(name)), schema))
    if len(unknown) > _MOST_UNKNOWN:
        problems.append(Problem(tree.origin(key), f"and {len(unknown) - _MOST_UNKNOWN} more unknown keys"))
    for name, child in schema.get("properties", {}).items():
        path = (*key, name)
        if name in values:
            values[name] = _checked(tree, path, values[name], child, problems)
        elif name in schema.get("required", ()):
            text = f"'{'.'.join(path)}' is missing: {_doc(child)}"
            problems.append(Problem(tree.origin(key), text))


def _unknown(tree: Tree, key: Key, schema: Schema) -> Problem:
    allowed = schema.get("properties", {})
    text = f"unknown key '{'.'.join(key)}'{nearest(key[-1], allowed)}"
    return Problem(tree.origin(key), text if "mean" in text else f"{text}; allowed: {', '.join(allowed)}")


def _doc(schema: Schema) -> str:
    return str(schema.get("description") or describe(schema))


def _checked(tree: Tree, key: Key, value: Any, schema: Schema, problems: list[Problem]) -> Any:
    options = schema.get("anyOf", [schema])
    if isinstance(value, dict):
        objects = [option for option in options if option.get("type") == "object"]
        if objects:
            if "properties" in objects[0]:
                check(tree, objects[0], problems, key)
            else:
                _check_map(tree, key, value, objects[0], problems)
            return value
    for option in options:
        fits, typed = _typed(value, option)
        if fits:
            return typed
    near = nearest(str(value), [str(v) for option in options for v in option.get("enum", ())])
    problems.append(
        Problem(tree.origin(key), f"{'.'.join(key)} is {_shown(key, value)}; {describe(schema)} is needed{near}")
    )
    return value


def _check_map(tree: Tree, key: Key, value: dict[str, Any], schema: Schema, problems: list[Problem]) -> None:
    inner = schema.get("additionalProperties")
    if isinstance(inner, Mapping):
        for name in value:
            value[name] = _checked(tree, (*key, str(name)), value[name], inner, problems)


def _shown(key: Key, value: Any) -> str:
    try:
        if why_secret(key[-1] if key else "", str(value)):
            return MASK
        text = mask(json.dumps(value, ensure_ascii=False, default=str))
    except ValueError:  # Python writes out no number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def _typed(value: Any, schema: Schema) -> tuple[bool, Any]:
    if "const" in schema:
        return value == schema["const"], value
    convert = _TYPES.get(str(schema.get("type")))
    if convert is None:
        return True, value
    fits, typed = convert(value, schema)
    return fits and typed in schema.get("enum", (typed,)) and _in_bounds(typed, schema), typed


def _integer(value: Any, _: Schema) -> tuple[bool, Any]:
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_NUMBER:
        return True, int(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER, value


def _number(value: Any, _: Schema) -> tuple[bool, Any]:
    # YAML 1.1 reads 2e-4 as text, because it has no point; a person means the number.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False, value
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return False, value
    # Infinity and NaN pass every comparison that a bound makes, or none.
    return math.isfinite(number), number if math.isfinite(number) else value


def _string(value: Any, _: Schema) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _boolean(value: Any, _: Schema) -> tuple[bool, Any]:
    return isinstance(value, bool), value


def _null(value: Any, _: Schema) -> tuple[bool, Any]:
    return value is None, value


def _array(value: Any, schema: Schema) -> tuple[bool, Any]:
    if not isinstance(value, list):
        return False, value
    wanted = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
    if len(wanted) != len(value):
        return False, value
    results = [_typed(item, inner) for item, inner in zip(value, wanted, strict=True)]
    return all(fits for fits, _ in results), [typed for _, typed in results]


_TYPES: dict[str, Callable[[Any, Schema], tuple[bool, Any]]] = {
    "integer": _integer, "number": _number, "string": _string, "boolean": _boolean, "null": _null, "array": _array,
    "object": lambda value, _: (isinstance(value, dict), value),
}  # fmt: skip


def _in_bounds(value: Any, schema: Schema) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return True
    return not (
        ("minimum" in schema and value < schema["minimum"])
        or ("exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"])
        or ("maximum" in schema and value > schema["maximum"])
        or ("exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"])
    )


def find(schema: Schema, key: Key) -> Schema | None:
    """Return the schema of a key, or None when there is no such key."""
    for part in key:
        options = [o for o in schema.get("anyOf", [schema]) if o.get("type") == "object"]
        if not options:
            return None
        extra = options[0].get("additionalProperties")
        child = options[0].get("properties", {}).get(part) or (extra if isinstance(extra, Mapping) else None)
        if child is None:
            return None
        schema = child
    return schema


def parse_value(text: str, schema: Schema) -> Any:
    """Read a value typed on a command line the way its key's schema says; text stays text where text is wanted."""
    types = {str(option.get("type")) for option in schema.get("anyOf", [schema])}
    if "string" in types and not ("null" in types and text in ("null", "~")):
        return text
    try:
        return read_value(text)
    except ValueError:
        return text  # the check says what is needed instead
