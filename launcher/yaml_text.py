"""YAML written the same way everywhere, so that equal values give equal bytes."""

from __future__ import annotations

from typing import Any

import yaml

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def dump(values: Any) -> str:
    """Return values as YAML text, keys in their order, one line a value."""
    return str(yaml.dump(values, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=10_000))
