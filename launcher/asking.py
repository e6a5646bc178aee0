"""Asking where runs are, so that one which cannot be understood hides no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from launcher.backends.base import STATES, UNKNOWN, BackendState, get_backend
from launcher.errors import BackendError, LauncherError
from launcher.store import Run

T = TypeVar("T")


def ask(runs: Sequence[Run], whatever: bool = False) -> list[BackendState]:
    """Return the state of every run, with one query per backend; what cannot be understood is unknown, with the reason.

    Args:
        runs: which.
        whatever: call a run unknown, too, whose scheduler cannot be asked; else that is an error.

    Raises:
        BackendError: a scheduler cannot be asked.
    """
    found = {id(run): BackendState(UNKNOWN, run.odd) for run in runs if run.odd}
    for backend in sorted({run.backend for run in runs if not run.odd}):
        mine = [run for run in runs if run.backend == backend and not run.odd]
        for run, state in zip(mine, _states(backend, mine, whatever), strict=True):
            found[id(run)] = _known(state)
    return [found[id(run)] for run in runs]


def attempt_to(function: Callable[[], T]) -> T | str:
    """Return what a function returns, or in words why what it read cannot be understood.

    Raises:
        BackendError: that is the scheduler's fault, not the run's.
    """
    try:
        return function()
    except BackendError:
        raise
    except LauncherError as error:
        return error.message
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return f"cannot be read: {error.strerror or error}{where}"
    except Exception as error:  # whatever stands in its files: the other runs must be shown
        return f"cannot be understood: {type(error).__name__}: {error}"


def judge(function: Callable[[], BackendState]) -> BackendState:
    """Return the state that a function finds; unknown, with the reason, where it cannot understand what it reads."""
    found = attempt_to(function)
    return BackendState(UNKNOWN, found) if isinstance(found, str) else found


def _states(backend: str, runs: Sequence[Run], whatever: bool) -> list[BackendState]:
    """The states of a backend's runs; where asking for all at once fails, of fewer at once."""
    try:
        found = attempt_to(lambda: get_backend(backend).states(runs))
    except BackendError as error:
        if not whatever:
            raise
        found = error.message
    if not isinstance(found, str):
        return found
    if len(runs) == 1:
        return [BackendState(UNKNOWN, found)]
    middle = len(runs) // 2
    return _states(backend, runs[:middle], whatever) + _states(backend, runs[middle:], whatever)


def _known(state: BackendState) -> BackendState:
    if state.state in STATES:
        return state
    return BackendState(UNKNOWN, f"its state is called '{state.state}', which is not known here")
