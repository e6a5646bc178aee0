"""What do REFER's annotations say (github.com/lichengunc/refer)? One folder a dataset, with COCO's pictures elsewhere::

    refcoco/   instances.json   refs(unc).p
    refcoco+/  instances.json   refs(unc).p
    refcocog/  instances.json   refs(umd).p

A pickle can run any program when it is read. Here it is read by an unpickler that knows plain values only, so that such
a file is refused; a ``refs(unc).json`` beside it, with the same list, goes before it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.errors import ConfigError, DataError

DATASETS = {
    "refcoco": ("unc", ("val", "testA", "testB")),
    "refcoco+": ("unc", ("val", "testA", "testB")),
    "refcocog": ("umd", ("val", "test")),
}
"""By folder: who divided it, and its parts for evaluation; each has a part ``train`` besides."""
_PLAIN = {"set": set, "frozenset": frozenset}
"""The only types of Python that a pickle of plain values has to name; all others have marks of their own."""


@dataclass(frozen=True)
class Referred:
    """An object and the phrases that name it."""

    split: str
    file_name: str
    """``COCO_train2014_<12 digits>_<number>.jpg``."""
    image_id: int
    raw: tuple[str, ...]
    """Phrases as they were typed."""
    plain: tuple[str, ...]
    """The same in small letters without punctuation, as evaluation files have them."""
    bbox: list[float]
    """Left, upper edge, width and height in pixels."""
    height: int
    width: int


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain values and refuses whatever would be looked up by name."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in _PLAIN:
            return _PLAIN[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no plain value")


def read_refer(folder: Path, divided_by: str) -> Iterator[Referred]:
    """Read one dataset's annotations.

    Args:
        folder: with ``instances.json`` and ``refs(<divided_by>).p`` or ``.json``.
        divided_by: unc or umd.

    Raises:
        ConfigError: a file is missing.
        DataError: a file cannot be read, or a reference points to nothing.
    """
    instances = _read(folder / "instances.json")
    refs = _read(_refs_path(folder, divided_by))
    try:
        boxes = {one["id"]: one["bbox"] for one in instances["annotations"]}
        sizes = {one["id"]: (one["height"], one["width"]) for one in instances["images"]}
        for ref in refs:
            sentences = [(str(one["raw"]), str(one["sent"])) for one in ref["sentences"]]
            raw, plain = zip(*sentences, strict=True) if sentences else ((), ())
            height, width = sizes[ref["image_id"]]
            where = (ref["split"], ref["file_name"], ref["image_id"])
            yield Referred(*where, raw, plain, [float(part) for part in boxes[ref["ann_id"]]], height, width)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder} does not hold REFER's annotations: {type(error).__name__} {error}") from None


def _refs_path(folder: Path, divided_by: str) -> Path:
    as_json = folder / f"refs({divided_by}).json"
    return as_json if as_json.exists() else as_json.with_suffix(".p")


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            # Python 2 wrote these files; its byte strings are text.
            return json.load(file) if path.suffix == ".json" else _PlainUnpickler(file, encoding="utf-8").load()
    except FileNotFoundError:
        raise ConfigError(f"file not found: {path}", "Unpack REFER's annotations (refcoco.zip ...) there.") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        hint = "" if path.suffix == ".json" else f"Only plain values are read; {path.stem}.json may stand for it."
        raise DataError(f"cannot read {path}: {error}", hint) from None
