"""What a check has to say: numbers, and what is wrong with which file, with the cure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that somebody should know."""

    kind: str
    """One or two words that findings of this kind share."""
    where: str
    """Path, record or line."""
    what: str
    cure: str = ""
    grave: bool = True
    """False: worth knowing, but training and evaluation go on all the same."""


@dataclass
class Section:
    """What was found out about one set of files."""

    title: str
    numbers: dict[str, Any] = field(default_factory=dict)
    """In the order they are shown; nested one level at most."""
    findings: list[Finding] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    """Names of pictures with another suffix, and the paths that links to them would mend."""

    def add(self, kind: str, where: object, what: str, cure: str = "", grave: bool = True) -> None:
        """Note one more finding."""
        self.findings.append(Finding(kind, str(where), what, cure, grave))

    @property
    def grave(self) -> int:
        """Number of findings that stand in the way."""
        return sum(finding.grave for finding in self.findings)
