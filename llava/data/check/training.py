"""Are a recipe's records right and complete, is every picture of theirs there, and what does the cut take away?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llava.data.check.cures import add_troubles, cure_of_folder, folder_of
from llava.data.check.findings import Section
from llava.data.check.known import RECORDS
from llava.data.check.pictures import look_at_all
from llava.data.check.sources import Training
from llava.data.records import Record, read_values, to_record
from llava.errors import LlavaError

if TYPE_CHECKING:
    from llava.data.check.progress import Bar

MakeBar = Callable[[str, int], "Bar"]
"""From a description and a total."""


def check_training(source: Training, processes: int, bar: MakeBar) -> list[Section]:
    """Check one set of records and what belongs to it."""
    section = Section(f"{source.title}: records {source.records}")
    records = _records(source, section)
    pictures = Section(f"{source.title}: pictures below {source.images}")
    if records is None:  # the layout at least can be looked at
        known = RECORDS.get(source.records.name)
        _missing_folders(source, Counter(dict.fromkeys(known.folders if known else (), 0)), pictures)
        return [section, pictures]
    sections = [section]
    if any(record.image is not None for record in records):
        _pictures(source, records, pictures, processes, bar)
        sections.append(pictures)
    if source.tokenizer is not None and source.template is not None and records:
        from llava.data.check.lengths import check_lengths

        sections.append(check_lengths(source, records, bar))
    return sections


def _records(source: Training, section: Section) -> list[Record] | None:
    """Every record that can be used; None: the file cannot be read."""
    known = RECORDS.get(source.records.name)
    records: list[Record] = []
    seen = 0
    try:
        for number, value in enumerate(read_values(source.records)):
            seen += 1
            try:
                records.append(to_record(value, number))
            except LlavaError as error:
                section.add("wrong record", source.records, str(error), "mend the record, or take it out")
    except LlavaError as error:
        section.add("records", source.records, str(error), known.cure if known else "put the file there")
        return None
    texts = sum(record.image is None for record in records)
    turns = sum(len(record.turns) for record in records)
    section.numbers |= {"records": seen, "about a picture": len(records) - texts, "text alone": texts, "turns": turns}
    if known and seen != known.count:
        what = f"{seen:,} records; the published file has {known.count:,}"
        section.add("records", source.records, what, f"download it again: {known.cure}")
    return records


def _pictures(source: Training, records: list[Record], section: Section, processes: int, bar: MakeBar) -> None:
    names = sorted({record.image for record in records if record.image is not None})
    folders = Counter(folder_of(record.image) for record in records if record.image is not None)
    absent = _missing_folders(source, folders, section)
    there = [(name, None) for name in names if folder_of(name) not in absent]
    with bar("pictures", len(there)) as progress:
        looked = look_at_all(str(source.images), there, processes, progress.advance)
    bad = Counter(folder_of(t.name) for t in looked.troubles if t.kind != "suffix")
    section.numbers |= {
        "pictures": len(names),
        "opened": looked.opened,
        "megabytes": looked.read_bytes // 10**6,
        "pictures a minute": progress.per_minute,
        "records by folder": dict(_first(folders)),
        "bad pictures by folder": dict(_first(bad)),
    }
    add_troubles(section, source.images, looked, source.may_miss)


def _missing_folders(source: Training, records_in: Counter[str], section: Section) -> set[str]:
    """Folders of pictures that are not there at all; ``records_in``: how many records need each."""
    if not source.images.is_dir():
        section.add("missing folder", source.images, "folder not found", cure_of_folder(source.images, ""))
        return set(records_in)
    absent = {folder for folder in records_in if not (source.images / folder).is_dir()}
    for folder in sorted(absent):
        need = f"; {records_in[folder]:,} records need it" if records_in[folder] else ""
        what, cure = f"folder not found{need}", cure_of_folder(source.images, folder)
        section.add("missing folder", source.images / folder, what, cure)
    return absent


def _first(counts: Counter[str], most: int = 20) -> list[tuple[str, Any]]:
    """The 558K file has 660 folders; nobody reads that many lines."""
    shown: list[tuple[str, Any]] = [(name or ".", count) for name, count in sorted(counts.items())[:most]]
    rest = len(counts) - len(shown)
    return [*shown, ("...", f"{rest} more folders")] if rest else shown
