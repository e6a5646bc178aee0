"""Can every picture be opened, and is it what its name says? Many at once, in processes of their own.

A picture is decoded in full and turned to RGB, as training does it, so that what fails here fails there and nothing
else does. No torch here: processes start in a fraction of a second.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from typing import Literal

from llava.errors import DataError

CHUNK = 64
"""Pictures handed to a process at once."""
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}
"""By Pillow's name of what a file holds."""
_TWINS = [s for suffix in (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp") for s in (suffix, suffix.upper())]


@dataclass(frozen=True)
class Trouble:
    """What is wrong with one picture."""

    name: str
    kind: Literal["missing", "twin", "unreadable", "suffix", "size"]
    """twin: missing, but there is one of the same name with another suffix; suffix: it holds another format than its
    name says, and can be read; size: it is not as large as was said."""
    detail: str
    """The twin's name, the error, the format it holds, or its size."""


@dataclass
class Looked:
    """What was found in some pictures."""

    opened: int = 0
    read_bytes: int = 0
    troubles: list[Trouble] = field(default_factory=list)

    def add(self, other: Looked) -> None:
        """Take in what another process found."""
        self.opened += other.opened
        self.read_bytes += other.read_bytes
        self.troubles += other.troubles


Wanted = tuple[str, tuple[int, int] | None]
"""A path below the folder, and the (width, height) that it should have; None: any."""


def look_at(folder: str, wanted: list[Wanted]) -> Looked:
    """Open pictures one after the other; what a process does."""
    looked = Looked()
    for name, size in wanted:
        trouble, read_bytes = _open(folder, name, size)
        if trouble is not None:
            looked.troubles.append(trouble)
        looked.opened += trouble is None or trouble.kind in ("suffix", "size")
        looked.read_bytes += read_bytes
    return looked


def look_at_all(folder: str, wanted: Iterable[Wanted], processes: int, tell: Callable[[int], None]) -> Looked:
    """Open pictures in so many processes.

    Args:
        tell: called with how many more are done.

    Raises:
        DataError: a process was killed from outside (most often for memory), or brought down by a picture.
    """
    found = Looked()
    chunks = _chunks(wanted)
    # Started afresh, not forked: this process may hold threads of a tokenizer.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_process)
    try:
        running: dict[Future[Looked], list[Wanted]] = {}
        while True:
            for chunk in islice(chunks, 3 * processes - len(running)):
                running[pool.submit(look_at, folder, chunk)] = chunk
            if not running:
                return found
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                found.add(future.result())
                tell(len(running.pop(future)))
    except BrokenProcessPool:
        names = ", ".join(chunk[0][0] for chunk in running.values())
        raise DataError(
            f"a process that opens pictures was killed, somewhere behind one of {names}",
            "If memory is short, try fewer --processes.",
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _open(folder: str, name: str, size: tuple[int, int] | None) -> tuple[Trouble | None, int]:
    from PIL import Image

    path = os.path.join(folder, name)
    try:
        with Image.open(path) as image:
            image.convert("RGB")
            form, seen = image.format or "", image.size
        read = os.path.getsize(path)
    except FileNotFoundError:
        twin = _twin(path)
        return Trouble(name, "missing" if twin is None else "twin", twin or ""), 0
    # Broken files make PIL's decoders raise nearly anything (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        return Trouble(name, "unreadable", f"{type(error).__name__}: {str(error).replace(path, name)}"), 0
    if size is not None and seen != size:
        return Trouble(name, "size", f"{seen[0]} x {seen[1]}"), read
    if form in SUFFIXES and os.path.splitext(name)[1].lower() not in SUFFIXES[form]:
        return Trouble(name, "suffix", form), read
    return None, read


def _twin(path: str) -> str | None:
    """Name of a file beside a missing one that differs in its suffix alone."""
    stem = os.path.splitext(path)[0]
    if not os.path.isdir(os.path.dirname(path)):
        return None
    return next((os.path.basename(stem + suffix) for suffix in _TWINS if os.path.isfile(stem + suffix)), None)


def _chunks(wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    source = iter(wanted)
    while chunk := list(islice(source, CHUNK)):
        yield chunk


def _start_process() -> None:
    from llava.interrupt import die_with_parent

    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the work
    warnings.simplefilter("ignore")  # Pillow warns of oddities in files that it reads all the same
