"""Which jobs are a run's: numbers are used again after a controller was reset, and names by anybody.

Each job of a run carries a mark at the end of its comment, ``llavajob=RUN_ID.TICKET``: the run, and the one submission
of the one step that made the job. slurmctld keeps comments, and the accounting the command line that they stood on.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

_MARK = re.compile(r"\bllavajob=([0-9a-f]{16})\.([0-9a-f]{8})\b")


def new_ticket() -> str:
    """Return a name for one submission of one step, so that its job is found when the answer of sbatch was lost."""
    return secrets.token_hex(4)


def comment(own: str, run_id: str, ticket: str) -> str:
    """Return the comment that a job is sent with: the user's own, then the mark."""
    return " ".join(filter(None, [own, f"llavajob={run_id}.{ticket}"]))


@dataclass(frozen=True)
class Owner:
    """What a job has to show for being a run's."""

    run_id: str
    """Empty for a run of a version that gave none."""
    folder: str
    """The run's folder when it was sent."""

    def owns(self, job_name: str, name: str, trace: str) -> bool:
        """Tell whether a job with the number that this run remembers is the run's.

        Args:
            job_name: the name that the run gave it.
            name: the name that Slurm shows; empty: it was not said.
            trace: the script and the comment, or the command line, as Slurm shows them; empty: not said.
        """
        marks = _MARK.findall(trace)
        if self.run_id and marks:
            return bool(marks[-1][0] == self.run_id)
        # A version that gave no mark sent it, or the site put a comment of its own in its place.
        if trace and self.folder:
            return f"{self.folder}/slurm/" in trace and not marks
        return name in ("", job_name)

    def sent(self, ticket: str, trace: str) -> bool:
        """Tell whether a job was made by that very submission."""
        return (self.run_id, ticket) in _MARK.findall(trace)
