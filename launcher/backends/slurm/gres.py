"""What nodes offer, as Slurm writes generic resources: ``gpu:a100:4(S:0-1),gpu:v100:2,nvme:1600``."""

from __future__ import annotations

import re
from collections import Counter

_IN_BRACKETS = re.compile(r"\([^)]*\)")
_COUNT = re.compile(r"([0-9]+)([KMGTP]?)", re.IGNORECASE | re.ASCII)
_FLAGS = ("no_consume", "one_sharing")
_FACTORS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


def count_gpus(text: str) -> dict[str, int]:
    """Count the GPUs in a list of generic resources, by type; GPUs without a type count for the empty one.

    Args:
        text: as sinfo writes it (``gpu:a100:4(S:0-1),shard:8``), or as TRES (``gres/gpu:a100=4``).
    """
    counts: Counter[str] = Counter()
    for entry in _IN_BRACKETS.sub("", text).split(","):
        name, *rest = re.split(r"[:=]", entry.strip().removeprefix("gres/").removeprefix("gres:"))
        if name != "gpu":
            continue
        rest = [word for word in rest if word and word not in _FLAGS]
        number = _COUNT.fullmatch(rest[-1]) if rest else None
        kind = rest[0] if rest and not (number and len(rest) == 1) else ""
        counts[kind] += int(number[1]) * _FACTORS[number[2].upper()] if number else 1
    return dict(counts)


def in_words(counts: dict[str, int]) -> str:
    """Write counted GPUs as ``gpu:a100:4, gpu:v100:2``."""
    return ", ".join(f"gpu:{kind}:{count}" if kind else f"gpu:{count}" for kind, count in sorted(counts.items()))
