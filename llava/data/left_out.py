"""What of the records is not learned, and why: counted, and told record by record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llava.data.collate import IMAGE_TOKEN
from llava.data.conversation import Encoded
from llava.data.records import Record


@dataclass(frozen=True)
class Counts:
    """What became of the records."""

    records: int = 0
    samples: int = 0
    empty: int = 0
    """Left out: no question with an answer."""
    unlearned: int = 0
    """Left out: no supervised token before the cut."""
    truncated: int = 0
    """Kept, but cut off on the right."""
    pictures_lost: int = 0
    """Of the truncated: those whose picture stood behind the cut; they are kept as text."""

    def __str__(self) -> str:
        dropped = f"{self.empty:,} without an answer and {self.unlearned:,} cut before it are left out"
        cut = f"{self.truncated:,} are cut" + (f" ({self.pictures_lost:,} lose the picture)" * bool(self.pictures_lost))
        return f"{self.samples:,} of {self.records:,} records to learn from; {dropped}; {cut}"


@dataclass(frozen=True)
class LeftOut:
    """A record that is dropped, or a part of one that is cut off."""

    record: str
    """Its number in the file, and its id."""
    fate: Literal["dropped", "truncated"]
    why: str
    tokens: int
    """Length of the whole conversation, the picture counted as one."""
    kept: int
    """Tokens that training sees; 0 for a dropped record."""
    learned_lost: int
    """Supervised tokens that are not learned."""
    picture_lost: bool = False
    """The picture stood behind the cut."""


class Judge:
    """Decides what becomes of each record, and counts."""

    def __init__(self) -> None:
        self.counts = Counts()

    def look(self, record: Record, encoded: Encoded) -> LeftOut | None:
        """What of this record is left out; None: nothing.

        The sample is kept where the result is None or its fate is "truncated".
        """
        had_picture = record.image is not None and bool(record.turns)
        found = _left_out(record, encoded, had_picture and IMAGE_TOKEN not in encoded.ids)
        old = self.counts
        dropped = found is not None and found.fate == "dropped"
        self.counts = replace(
            old,
            records=old.records + 1,
            samples=old.samples + (not dropped),
            empty=old.empty + (dropped and not record.turns),
            unlearned=old.unlearned + (dropped and bool(record.turns)),
            truncated=old.truncated + (found is not None and not dropped),
            pictures_lost=old.pictures_lost + (found is not None and found.picture_lost),
        )
        return found


def _left_out(record: Record, encoded: Encoded, picture_lost: bool) -> LeftOut | None:
    if not record.turns:
        return LeftOut(record.name, "dropped", "no question with an answer", encoded.whole, 0, 0)
    lost = encoded.learned_lost
    if not encoded.learned:
        why = f"no supervised token among the first {len(encoded.ids)}"
        return LeftOut(record.name, "dropped", why, encoded.whole, 0, lost)
    if not encoded.truncated:
        return None
    why = f"cut after {len(encoded.ids)} tokens"
    return LeftOut(record.name, "truncated", why, encoded.whole, len(encoded.ids), lost, picture_lost)
