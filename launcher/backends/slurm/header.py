"""Values of ``#SBATCH`` lines as sbatch itself reads them, which is not quite how a shell does."""

from __future__ import annotations


def header_value(text: str) -> str:
    """Prepare a value that submitit will quote for a shell.

    Between single quotes, too, sbatch takes a backslash for the escape of the character after it
    (src/sbatch/opt.c, _get_argument). Line breaks cannot be written at all; profiles with them are refused.
    """
    return text.replace("\\", "\\\\")
