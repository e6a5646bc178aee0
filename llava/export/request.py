"""What does a person say about a source beyond its path?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Request:
    """Names that go before those that the source gives."""

    language: str | None = None
    """Base language model."""
    vision: str | None = None
    """Base vision tower."""
    template: str | None = None
    """Conversation template."""
    allow_pickle: bool = False
    """Pickled weight files may be read."""

    def base(self, role: Literal["language", "vision"]) -> str | None:
        """The named base of a part."""
        return self.language if role == "language" else self.vision
