"""The token index: every record's tokens and labels on disk, made once by one process and mapped by all others.

Lengths and numbers of supervised tokens are thereby known before training, nothing is encoded twice, and a rank holds
no records in memory. A folder per records file, tokenizer, template and length::

    ids.npy         (all tokens,) int32, with IMAGE_TOKEN
    learned.npy     (all tokens,) bool
    ends.npy        (samples + 1,) int64, where each sample's tokens end; the first is 0
    images.npy      (samples,) bytes, path below the image folder, empty for none
    left_out.jsonl  records that are dropped or cut, a line each (``llava/data/left_out.py``)
    index.json      how many; written last
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava.data.collate import IGNORE, IMAGE_TOKEN
from llava.data.conversation import Encoded, assemble, encode_texts, specials, texts
from llava.data.left_out import Counts, Judge
from llava.data.records import Record, read_records
from llava.errors import ConfigError, DataError
from llava.submitter_umask import submitter_umask
from llava.templates import Template

FORMAT = 2
LEFT_OUT = "left_out.jsonl"
"""Names the records that are dropped or cut."""
CHUNK = 2000
"""Records encoded in one call of the tokenizer, which uses every core."""
MaxLength = int | tuple[int, int]
"""Tokens kept of a record, its picture counted as one; two numbers: with a picture, and without."""


class TokenIndex:
    """The samples of a finished index folder; its arrays stay on disk until they are read."""

    def __init__(self, folder: Path) -> None:
        def load(name: str) -> Any:
            return np.load(folder / f"{name}.npy", mmap_mode="r")

        self._ids: NDArray[np.int32] = load("ids")
        self._learned: NDArray[np.bool_] = load("learned")
        self._images = load("images")
        self._ends: NDArray[np.int64] = np.array(load("ends"))
        self.counts = Counts(**json.loads((folder / "index.json").read_text(encoding="utf-8")))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def tokens(self, sample: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """A sample's ids and labels."""
        span = slice(self._ends[sample], self._ends[sample + 1])
        ids = np.array(self._ids[span])
        return ids, np.where(self._learned[span], ids, np.int32(IGNORE))

    def image(self, sample: int) -> str | None:
        """A sample's picture, as a path below the image folder."""
        return bytes(self._images[sample]).decode() or None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, a picture counted as one."""
        return np.diff(self._ends)

    @property
    def has_image(self) -> NDArray[np.bool_]:
        """Which samples have a picture."""
        return np.asarray(self._images != b"")


def build_index(
    records: str, tokenizer: Any, template: Template, max_length: MaxLength, cache: Path, check: Callable[[], None]
) -> Path:
    """The index folder for these records: found below ``cache``, or made there.

    Args:
        check: called between chunks; may raise to stop.

    Raises:
        ConfigError: the records file is missing.
        DataError: a record is wrong, or none is left to learn from.
    """
    folder = cache / f"index-{_key(records, tokenizer, template, max_length)}"
    if (folder / "index.json").is_file():
        return folder
    aside = cache / f".{folder.name}.tmp-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    with submitter_umask(cache):
        aside.mkdir(parents=True)
    try:
        with submitter_umask(cache):
            counts = _write(aside, read_records(records), tokenizer, template, max_length, check)
        if not counts.samples:
            raise DataError(f"{records} has no record to learn from: {asdict(counts)}")
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def encode_records(
    records: Iterable[Record], tokenizer: Any, template: Template, max_length: MaxLength
) -> Iterator[tuple[Record, Encoded]]:
    """Encode records, many in one call of the tokenizer."""
    with_picture, without = max_length if isinstance(max_length, tuple) else (max_length, max_length)
    special = specials(tokenizer, template)
    source = iter(records)
    while chunk := list(islice(source, CHUNK)):
        tokens = encode_texts(tokenizer, (text for record in chunk for text in texts(record, template)))
        for record in chunk:
            kept = without if record.image is None else with_picture
            yield record, assemble(record, template, tokens, special, kept)


def _write(
    folder: Path,
    records: Iterable[Record],
    tokenizer: Any,
    template: Template,
    max_length: MaxLength,
    check: Callable[[], None],
) -> Counts:
    ids: list[NDArray[np.int32]] = []
    learned: list[NDArray[np.bool_]] = []
    images: list[bytes] = []
    judge = Judge()
    with (folder / LEFT_OUT).open("w", encoding="utf-8") as left_out:
        for record, encoded in encode_records(records, tokenizer, template, max_length):
            if judge.counts.records % CHUNK == 0:
                check()
            found = judge.look(record, encoded)
            if found is not None:
                left_out.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")
                if found.fate == "dropped":
                    continue
            ids.append(np.array(encoded.ids, np.int32))
            learned.append(np.array(encoded.labels, np.int32) != IGNORE)
            # The cut may have taken the picture's place away; then the picture is not read either.
            images.append((record.image or "").encode() if IMAGE_TOKEN in encoded.ids else b"")
    if ids:
        np.save(folder / "ids.npy", np.concatenate(ids))
        np.save(folder / "learned.npy", np.concatenate(learned))
        np.save(folder / "ends.npy", np.cumsum([0, *map(len, ids)], dtype=np.int64))
        np.save(folder / "images.npy", np.array(images, dtype=f"S{max(1, *map(len, images), 1)}"))
    (folder / "index.json").write_text(json.dumps(asdict(judge.counts)), encoding="utf-8")
    return judge.counts


def _key(records: str, tokenizer: Any, template: Template, max_length: MaxLength) -> str:
    try:
        status = os.stat(records)
    except OSError:
        raise ConfigError(f"data.records: file not found: {records}") from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = (
        FORMAT,
        os.path.abspath(records),
        status.st_size,
        status.st_mtime_ns,
        words,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        template,
        max_length,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
