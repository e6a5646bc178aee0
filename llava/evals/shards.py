"""Which rows does shard ``i`` of ``n`` answer? The same ones on every machine, whoever asks."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable
from typing import TypeVar

from llava.evals.benchmark import Row

ARow = TypeVar("ARow", bound=Row)


def units(rows: Iterable[ARow]) -> list[list[ARow]]:
    """Rows that share a picture, so that it is encoded once; in the file's order."""
    by_picture: dict[Hashable, list[ARow]] = {}
    for row in rows:
        by_picture.setdefault(row.picture, []).append(row)
    return list(by_picture.values())


def split(rows: Iterable[ARow], shards: int) -> list[list[ARow]]:
    """Deal whole units to shards of nearly equal size: the largest first, each to the lightest shard.

    Returns:
        one list of rows a shard; a shard may be empty where there are fewer pictures than shards.
    """
    shares: list[list[ARow]] = [[] for _ in range(shards)]
    lightest = [(0, shard) for shard in range(shards)]
    for unit in sorted(units(rows), key=lambda unit: (-len(unit), unit[0].index)):
        size, shard = heapq.heappop(lightest)
        shares[shard] += unit
        heapq.heappush(lightest, (size + len(unit), shard))
    return shares
