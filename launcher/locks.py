"""Locks on files: held by a process, let go by the kernel when that process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOK_S = 0.05
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""How a file system says that it has no locks; what they guard is done without them there."""
_mine: set[tuple[int, int]] = set()
"""Device and inode of the lock files that this process holds."""


class Held(Exception):
    """Another process holds the lock."""


def open_locked(path: Path, patience_s: float = 1.0) -> int:
    """Return a descriptor that holds the lock until it is closed; the file is made where it is missing.

    Args:
        path: the lock file.
        patience_s: how long to try again. Whoever only looks whether a lock is held takes it for a moment.

    Raises:
        Held: another process keeps it.
        OSError: the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        lock_descriptor(descriptor, patience_s)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def lock_descriptor(descriptor: int, patience_s: float) -> None:
    """Lock an open file.

    Raises:
        Held: another process keeps it locked.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Held from None
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                return
            raise
        time.sleep(_LOOK_S)


@contextmanager
def hold(path: Path, patience_s: float = 1.0) -> Iterator[None]:
    """Hold a lock for a block of code; see open_locked for what it raises."""
    descriptor = open_locked(path, patience_s)
    key = _key(os.fstat(descriptor))
    _mine.add(key)
    try:
        yield
    finally:
        _mine.discard(key)
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Tell whether another process holds a lock. Nothing is written, and a file that cannot be read is not locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if _key(os.fstat(descriptor)) in _mine:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _key(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino
