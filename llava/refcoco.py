"""``python -m llava.refcoco --config FILE [--shard I] [--merge]``: RefCOCO grounding in shards, then one score.

See :mod:`llava.evals.command` for what the options mean.
"""

from __future__ import annotations

import sys

from llava.evals import command
from llava.evals.command import start as start


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line; returns the exit code."""
    return command.main("refcoco", arguments)


if __name__ == "__main__":
    sys.exit(main())
