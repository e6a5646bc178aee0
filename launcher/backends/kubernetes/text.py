"""Objects as YAML that kubectl reads the same way, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# PyYAML writes these without quotes, and kubectl would read numbers (1e5, 0o17) and truth values.
_NUMBER = re.compile(r"[-+]?\.?\d[\da-fA-FxXoO_.eE+-]*")
_TRUTH = frozenset("yYnN")


class _ObjectDumper(_Dumper):  # type: ignore[misc]
    """Writes each value where it stands, and text of several lines as it is."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: Any, text: str) -> Any:
    style = "|" if "\n" in text else "'" if _NUMBER.fullmatch(text) or text in _TRUTH else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_ObjectDumper.add_representer(str, _represent_text)


def write_objects(objects: Sequence[dict[str, Any]]) -> str:
    """Return objects as YAML documents, keys in their order: equal objects give equal bytes."""
    return "---\n".join(
        yaml.dump(value, Dumper=_ObjectDumper, sort_keys=False, allow_unicode=True, width=10_000) for value in objects
    )


def parse_objects(text: str) -> list[dict[str, Any]]:
    """Read what ``write_objects`` wrote."""
    return [value for value in yaml.load_all(text, Loader=_LOADER) if value is not None]
