"""What a place offers and lacks, found before a job waits for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.plain_text import one_line
from launcher.profiles import Profile
from launcher.secret_values import lacking_secrets

_LITTLE_GB = 50


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    seen: str
    good: bool | None = True
    """None: it could not be looked at, or it is good to know."""
    cure: str = ""

    def line(self) -> str:
        """The finding for people."""
        mark = {True: "+", False: "x", None: "-"}[self.good]
        cure = f"\n      {self.cure}" if self.cure else ""
        return f"  {mark} {one_line(self.what)}: {one_line(self.seen)}{cure}"


def examine_runs_folder(profile: Profile) -> Iterator[Finding]:
    """Look at the folder that runs are kept in, from here."""
    existing = next(path for path in (profile.runs, *profile.runs.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        cure = "Set runs: in the profile, or LLAVAJOB_RUNS, to a folder that you can write to."
        yield Finding("runs folder", f"{profile.runs} cannot be written to", False, cure)
        return
    free_gb = shutil.disk_usage(existing).free / 1e9
    cure = "A checkpoint of a 7B model takes 14 to 84 GB." if free_gb < _LITTLE_GB else ""
    yield Finding("runs folder", f"{profile.runs}, {free_gb:,.0f} GB free", free_gb >= _LITTLE_GB or None, cure)


def examine_profile(profile: Profile) -> Iterator[Finding]:
    """Say which profile is looked at."""
    where = profile.source if profile.source == "built in" else Path(profile.source).name
    yield Finding("profile", f"{profile.name} ({profile.backend}, {where})")
    if profile.backend != "kubernetes":
        for text in lacking_secrets(profile.settings):
            yield Finding("secrets", text, False)
