"""What to do about each kind of trouble with pictures."""

from __future__ import annotations

from pathlib import Path

from llava.data.check.findings import Section
from llava.data.check.known import PICTURES
from llava.data.check.pictures import Looked, Trouble


def folder_of(name: str) -> str:
    """The published folder that a picture belongs to, or the first folder of its path ("" where there is none)."""
    parts = name.split("/")
    for depth in range(len(parts) - 1, 0, -1):
        if "/".join(parts[:depth]) in PICTURES:
            return "/".join(parts[:depth])
    return parts[0] if len(parts) > 1 else ""


def cure_of_folder(images: Path, folder: str) -> str:
    """Where a missing folder comes from; its archive, where it lies about unopened."""
    known = PICTURES.get(folder)
    if known is None:
        archive = next((p for p in (images.parent / "images.zip", images / "images.zip") if p.is_file()), None)
        return f"unzip {archive} -d {images}" if archive else f"put {folder or 'it'} there, or set data.images"
    place = images / known.unpack
    for path in (place / known.archive, images / known.archive) if known.archive else ():
        if path.is_file():
            return f"unzip {path} -d {place}"
    unpack = f", unzip it into {place}" if known.archive else f" into {place}"
    return f"download {known.link}{unpack}" + (f"; {known.note}" if known.note else "")


def add_troubles(section: Section, images: Path, looked: Looked, may_miss: int) -> None:
    """Turn what was found in pictures into findings with their cures.

    Args:
        may_miss: bad pictures that training skips; no more than those do not stand in the way.
    """
    bad = sum(trouble.kind in ("missing", "twin", "unreadable") for trouble in looked.troubles)
    if bad and may_miss:
        then = "training stops" if bad > may_miss else "training skips them"
        section.numbers["bad pictures"] = f"{bad:,}; data.max_bad_images is {may_miss:,}, so {then}"
    for trouble in looked.troubles:
        kind, what, cure = _say(trouble)
        known = PICTURES.get(folder_of(trouble.name))
        if known and known.note and trouble.kind != "suffix":
            cure = f"{cure}; {known.note}"
        grave = trouble.kind != "suffix" and (bad > may_miss or trouble.kind == "size")
        section.add(kind, images / trouble.name, what, cure, grave)
        if trouble.kind == "twin":
            section.links.append((trouble.detail, str(images / trouble.name)))


def _say(trouble: Trouble) -> tuple[str, str, str]:
    """Kind, what is the matter, and the cure."""
    again = "download or unpack it again"
    if trouble.kind == "missing":
        return "missing picture", "not found", again
    if trouble.kind == "twin":
        return "wrong suffix", f"not found, but {trouble.detail} is there", "the report's cure.sh links all of these"
    if trouble.kind == "unreadable":
        return "unreadable picture", trouble.detail, again
    if trouble.kind == "size":
        return "wrong size", f"is {trouble.detail}, not as annotated", "take the pictures that were annotated"
    cure = "nothing to do here, pictures are opened by what they hold; other tools may want them renamed"
    return "other content", f"holds {trouble.detail}", cure
