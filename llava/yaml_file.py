"""Reading YAML that a person wrote: whatever stands in the file, it ends soon and in words."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import yaml

from llava.errors import ConfigError

_MOST_BYTES = 64 << 20
_MOST_VALUES = 1_000_000
"""Aliases written out: a kilobyte of aliases of aliases stands for billions of values."""
_DEEPEST = 50


def read_file(path: str | Path) -> str:
    """Read a text file; a pipe or a device is never waited for.

    Raises:
        ConfigError: the file is not there, is not a regular file, is too large or is not UTF-8.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"cannot read {path}: it is not a regular file")
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"config file not found: {path}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"cannot read {path}: it is larger than {_MOST_BYTES >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: {error}") from None


def read_values(text: str, where: str) -> Any:
    """Read YAML text.

    Raises:
        ConfigError: it is not YAML, or stands for more values than any config.
    """
    try:
        _measure(text, where)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read {where}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"cannot read {where}: not valid YAML: {error}") from None


def _measure(text: str, where: str) -> None:
    """Count events, which needs no recursion; an alias counts as what it names."""
    sizes: dict[str, int] = {}
    open_anchors: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_anchors.pop()
            if anchor:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.AliasEvent):
            total += sizes.get(str(event.anchor), _MOST_VALUES)  # an alias inside what it names has no end
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                open_anchors.append((event.anchor, total))
            elif event.anchor:
                sizes[event.anchor] = 1
            total += 1
        if total > _MOST_VALUES or len(open_anchors) > _DEEPEST:
            raise ConfigError(f"cannot read {where}: more values, or deeper inside each other, than any config has")
