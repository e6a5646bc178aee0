"""Which paths of this machine a run's processes reach, as far as that can be told before anything is sent."""

from __future__ import annotations

from pathlib import Path


class Reach:
    """What a backend's processes see and keep; this one is for those that run on this very machine."""

    def unseen(self, path: Path) -> str:
        """Say why the processes surely do not see what is here at a path; empty where they do, or may."""
        return ""

    def lost(self, path: Path) -> str:
        """Say why what the processes write to a path is surely lost; empty where it is kept, or may be."""
        return ""

    def doubt(self, path: Path) -> str:
        """Say why the processes probably do not see a path; empty where there is no reason to doubt it."""
        return ""

    def elsewhere(self, path: Path) -> str:
        """Where something could be put instead, so that they see it."""
        return "FOLDER"
