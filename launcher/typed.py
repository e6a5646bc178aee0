"""From JSON values to dataclasses: each value has the type that its field names, or the file is said to be wrong.

Keys that are not known are passed over, because a newer version may have written them.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from launcher.errors import Unreadable

T = TypeVar("T")
_LARGEST = 1 << 62
"""No number that the launcher writes is near it; larger ones break conversions."""
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}


def build(cls: Callable[..., T], values: Any, where: Path) -> T:
    """Make a dataclass of a mapping.

    Args:
        cls: which dataclass.
        values: what was read.
        where: the file that it was read from, for the message.

    Raises:
        Unreadable: a value has another type, or one that is needed is missing.
    """
    if not isinstance(values, dict):
        raise Unreadable(f"{where}: {_shown(values)} stands where a mapping belongs")
    hints = _hints(cls)
    known = {name: _value(hints[name], values[name], name, where) for name in hints if name in values}
    try:
        return cls(**known)
    except TypeError:
        raise Unreadable(f"{where} lacks values that are needed") from None


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a plain value has a type: ``str``, ``int``, ``float`` (finite), ``bool``, ``dict``, or a choice."""
    if hint is Any:
        return True
    if hint is float:
        return _is_number(value) and math.isfinite(value) and abs(value) < _LARGEST
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    return isinstance(value, hint)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls) if f.init}


def _value(hint: Any, value: Any, key: str, where: Path) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        hint = next(one for one in get_args(hint) if one is not type(None))
    if is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (list, tuple):
        if not isinstance(value, list):
            raise Unreadable(f"{where}: {key} is {_shown(value)}, no list")
        return kind(_value(inner[0], one, key, where) for one in value)
    if not fits(value, kind if kind is dict else hint):
        name = _NAMES.get(kind or hint, "one of the values that are known here")
        raise Unreadable(f"{where}: {key} is {_shown(value)}, not {name}")
    return value


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < _LARGEST
    return isinstance(value, float)


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None:
        return "null"
    text = repr(value) if not isinstance(value, int) or abs(value) < _LARGEST else "a huge number"
    return text if len(text) <= 60 else f"{text[:60]}…"
