"""Every error the runtime raises on purpose, and the exit codes a launcher can rely on.

LlavaError
├── ConfigError       the request is wrong: a key, a value, a missing file      exit 2
├── DataError         records or pictures cannot be used                        exit 3
├── WeightsError      a weight key is missing, left over or of another shape    exit 3
├── TrainingError     training cannot go on: NaN loss, full disk, read-only     exit 3
└── Interrupted       asked to stop by a signal; the state is saved             exit 175
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
"""Something broke that another try may survive (a lost peer, a driver, a bug)."""
EXIT_BAD_REQUEST = 2
EXIT_FINAL = 3
"""Another try of the same thing would end the same way."""
EXIT_INTERRUPTED = 175
"""State saved after SIGTERM or SIGUSR2. Above 127, so that a PyTorchJob's ``ExitCode`` policy starts the pod again."""


class LlavaError(Exception):
    """What went wrong, with what to do about it.

    Args:
        message: what failed and what was seen, without a full stop at the end of a path.
        hint: what to do; shown on a line of its own.
    """

    exit_code = EXIT_FINAL

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ConfigError(LlavaError):
    """The request is wrong: a key, a value, a missing file."""

    exit_code = EXIT_BAD_REQUEST


class DataError(LlavaError):
    """Records or pictures cannot be used."""


class WeightsError(LlavaError):
    """A weight key is missing, left over or of another shape."""


class TrainingError(LlavaError):
    """Training cannot go on; the last complete checkpoint is kept."""


class Interrupted(LlavaError):
    """A signal asked to stop; the state is saved and the run can be resumed."""

    exit_code = EXIT_INTERRUPTED
