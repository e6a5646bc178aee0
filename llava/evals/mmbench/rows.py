"""Which rows does a benchmark file hold, and can every one of them be asked?

The TSV columns are ``index, question, hint, A, B, ..., answer, category, image, source, l2-category, comment, split``.
Copy ``k`` of question ``q`` has the index ``q + k * 1_000_000`` and its options already shifted.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import string
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import DataError
from llava.evals.problems import cannot_be_evaluated

if TYPE_CHECKING:
    from PIL import Image

COPY = 1_000_000
"""Distance between the indexes of two copies of a question."""
LONGEST_REFERENCE = 64
"""An image cell this short is the index of the row that holds the picture; no picture takes so few characters."""
NUMBERS = ("index", "g_index")
"""Columns of whole numbers; all others hold text, also where it looks like a number."""
NEEDED_COLUMNS = ("index", "question", "A", "B", "image")


@dataclass(frozen=True)
class Row:
    """One circular copy of one question; texts are as in the file, "" where a cell is empty."""

    line: int
    index: int
    group: int
    """Index of the question's main row."""
    question: str
    hint: str
    options: dict[str, str]
    """Letter to text, empty cells left out; "None", "NA" and "null" are texts like any other."""
    answer: str
    picture: int
    """Index of the first row that holds this very picture."""
    category: str
    l2_category: str
    cells: dict[str, str] = field(repr=False)
    """Every cell of the row but the picture, by column, as in the file."""


@dataclass(frozen=True)
class Table:
    """A checked benchmark file."""

    path: str
    md5: str
    columns: tuple[str, ...]
    """Of the file, in its order."""
    rows: list[Row]
    pictures: dict[int, str] = field(repr=False)
    """Base64 text by ``Row.picture``."""

    @property
    def has_answers(self) -> bool:
        """False for test files, whose answers only the benchmark's server knows."""
        return any(row.answer for row in self.rows)

    def groups(self) -> dict[int, list[Row]]:
        """Every question's copies, by the index of its main row."""
        groups: dict[int, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups

    def open_picture(self, key: int) -> Image.Image:
        """Decode one picture to RGB.

        Raises:
            DataError: the picture is cut off or damaged.
        """
        from PIL import Image

        try:
            return Image.open(io.BytesIO(base64.b64decode(self.pictures[key]))).convert("RGB")
        except Exception as error:  # PIL's decoders raise nearly anything on a damaged file
            raise DataError(f"{self.path}: the picture of row {key} cannot be decoded: {error}") from None


def read(path: str | Path) -> Table:
    """Read and check a benchmark file.

    Raises:
        DataError: with every problem and its line number.
    """
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", "eval.data is the benchmark's .tsv file in UTF-8") from None
    cells = _cells(text, str(path))
    reader = _Reader()
    rows = [row for line, row_cells in cells if (row := reader.row(line, row_cells))]
    reader.check_groups(rows, explicit=bool(cells) and "g_index" in cells[0][1])
    reader.check_answers(rows)
    rows = reader.with_pictures(rows)
    if not cells:
        reader.problems.append((1, "the file has no rows"))
    if reader.problems:
        raise cannot_be_evaluated(str(path), reader.problems, "line")
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return Table(str(path), md5, tuple(cells[0][1]), rows, reader.pictures)


def _cells(text: str, path: str) -> list[tuple[int, dict[str, str]]]:
    """Split into (first line, column to cell); a quoted cell may span lines."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 128 KiB is less than one picture
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    rows: list[tuple[int, dict[str, str]]] = []
    problems: list[tuple[int, str]] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        problems += [(1, f"column {name!r} is missing") for name in NEEDED_COLUMNS if name not in header]
        problems += [
            (1, f"column {name!r} stands twice") for name in sorted({n for n in header if header.count(n) > 1})
        ]
        line = reader.line_num + 1
        for values in reader:
            if values and len(values) != len(header):
                problems.append((line, f"{len(values)} cells, but the header has {len(header)}"))
            elif values:
                rows.append((line, dict(zip(header, values, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        problems.append((reader.line_num, str(error)))
    if problems:
        raise cannot_be_evaluated(path, problems, "line")
    return rows


class _Reader:
    """Turns cells into rows and remembers every problem on the way."""

    def __init__(self) -> None:
        self.problems: list[tuple[int, str]] = []
        self.pictures: dict[int, str] = {}
        self._lines: dict[int, int] = {}
        self._image_cells: dict[int, str] = {}

    def row(self, line: int, cells: dict[str, str]) -> Row | None:
        """Build a row, its picture still unknown; None when its index cannot be used."""
        index = self._number(line, "index", cells["index"])
        if index is None:
            return None
        if index in self._lines:
            self.problems.append((line, f"index {index} stands on line {self._lines[index]} already"))
            return None
        self._lines[index] = line
        self._image_cells[index] = cells["image"].strip()
        group = index % COPY if "g_index" not in cells else self._number(line, "g_index", cells["g_index"])
        options = {c: cells[c] for c in string.ascii_uppercase if cells.get(c, "").strip()}
        self._check_texts(line, cells, options)
        return Row(
            line,
            index,
            index if group is None else group,
            cells["question"],
            _cell(cells, "hint"),
            options,
            cells.get("answer", "").strip(),
            index,
            _cell(cells, "category"),
            _cell(cells, "l2-category"),
            {name: cell for name, cell in cells.items() if name != "image"},
        )

    def _number(self, line: int, column: str, cell: str) -> int | None:
        cell = cell.strip()
        if cell.isascii() and cell.isdigit():
            return int(cell)
        self.problems.append((line, f"{column} {cell!r} is not a whole number"))
        return None

    def _check_texts(self, line: int, cells: dict[str, str], options: dict[str, str]) -> None:
        if not cells["question"].strip():
            self.problems.append((line, "the question is empty"))
        if len(options) < 2:
            self.problems.append((line, f"{len(options)} options; a choice needs at least two"))
        answer = cells.get("answer", "").strip()
        if answer and answer not in options:
            self.problems.append((line, f"answer {answer!r} is none of the options {', '.join(options)}"))

    def with_pictures(self, rows: list[Row]) -> list[Row]:
        """Follow references and find equal pictures, so that each picture has one key."""
        first_with: dict[bytes, int] = {}
        found: list[Row] = []
        for row in rows:
            holder = self._holder(row)
            if holder is None:
                continue
            cell = self._image_cells[holder]
            key = first_with.setdefault(hashlib.sha1(cell.encode(), usedforsecurity=False).digest(), holder)
            if key not in self.pictures and self._is_picture(row, cell):
                self.pictures[key] = cell
            found.append(Row(**{**row.__dict__, "picture": key}))
        return found

    def _holder(self, row: Row) -> int | None:
        """Index of the row whose image cell is a picture, from reference to reference."""
        index, seen = row.index, {row.index}
        while len(cell := self._image_cells[index]) <= LONGEST_REFERENCE:
            target = int(cell) if cell.isascii() and cell.isdigit() else None
            if target is None:
                self.problems.append((row.line, f"image {cell!r} is neither a picture nor the index of a row"))
                return None
            if target not in self._image_cells or target in seen:
                why = "refers to itself" if target in seen else "is not in the file"
                self.problems.append((row.line, f"the image's row {target} {why}"))
                return None
            index = target
            seen.add(index)
        return index

    def _is_picture(self, row: Row, cell: str) -> bool:
        from PIL import Image

        try:
            Image.open(io.BytesIO(base64.b64decode(cell, validate=True)))
            return True
        except Exception as error:  # PIL raises nearly anything on a damaged file
            self.problems.append((row.line, f"the image is not a base64 picture: {error}"))
            return False

    def check_groups(self, rows: list[Row], *, explicit: bool) -> None:
        """A question with N options has exactly N rows, one of them the main row.

        A missing copy would only make the question easier, and no scorer would notice.

        Args:
            rows: every usable row.
            explicit: the file names each row's group, so its indexes may be any.
        """
        groups: dict[int, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.group, []).append(row)
        for group, copies in groups.items():
            seen = sorted(row.index for row in copies)
            size = max(len(row.options) for row in copies)
            if any(len(row.options) != size for row in copies):
                self.problems.append((copies[0].line, f"question {group}: its rows have different numbers of options"))
            if len(copies) != size:
                self.problems.append((copies[0].line, f"question {group}: {len(copies)} rows for {size} options"))
            elif group not in seen:
                self.problems.append((copies[0].line, f"question {group}: the row with index {group} is missing"))
            elif not explicit and seen != [group + k * COPY for k in range(size)]:
                self.problems.append((copies[0].line, f"question {group}: its indexes are {seen}"))

    def check_answers(self, rows: list[Row]) -> None:
        """Either every row has its answer or none has."""
        if any(row.answer for row in rows):
            self.problems += [(row.line, "the answer is empty") for row in rows if not row.answer]


def _cell(cells: dict[str, str], name: str) -> str:
    text = cells.get(name, "")
    return text if text.strip() else ""
