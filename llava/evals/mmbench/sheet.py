"""Which spreadsheets do others read our predictions from? One sheet with every circular row.

The benchmark's server: a superset of what VLMEvalKit, LLaVA and XTuner upload; it has refused files without ``answer``
(opencompass issue 240; blank is fine) or ``A`` (lmms-eval issue 6).

VLMEvalKit's scorer (vlmeval/dataset/image_mcq.py, commit e8e78f05): exactly the columns of its own prediction files,
that is the TSV's without ``image``, in their order, and ``prediction``. A column more does harm there: an empty
``split`` makes the overall score nan, and so does an empty ``l2-category`` for its list of abilities.
"""

from __future__ import annotations

import io
import string
from collections.abc import Iterable, Mapping
from typing import Any

from llava.evals.mmbench.rows import NUMBERS, Table

SERVER_LAST = ("answer", "prediction", "category", "l2-category", "source", "split")


def for_the_server(table: Table, predictions: Mapping[int, str]) -> bytes:
    """An .xlsx file for the benchmark's server, in the rows' order.

    Args:
        table: the benchmark file.
        predictions: text by row index.
    """
    used = {letter for row in table.rows for letter in row.options}
    letters = [letter for letter in string.ascii_uppercase if letter in used or letter in "ABCD"]
    head = ["index", "question", "hint", *letters, *SERVER_LAST]
    rows = ({**row.cells, "answer": row.answer, "prediction": predictions[row.index]} for row in table.rows)
    return _book(head, ({name: text for name, text in cells.items() if text.strip()} for cells in rows))


def for_vlmevalkit(table: Table, predictions: Mapping[int, str]) -> bytes:
    """An .xlsx file for VLMEvalKit's scorer, in the rows' order.

    An empty prediction is written as a blank: pandas would read an empty cell as nan, and the text "nan" may hold an
    option's text.
    """
    head = [name for name in table.columns if name not in ("image", "prediction")]
    rows = ({**row.cells, "prediction": predictions[row.index] or " "} for row in table.rows)
    return _book([*head, "prediction"], rows)


def _book(head: list[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    page = book.create_sheet("Sheet1")
    page.append(head)
    for cells in rows:
        page.append([_cell(page, name, cells.get(name, "")) for name in head])
    data = io.BytesIO()
    book.save(data)
    return data.getvalue()


def _cell(page: Any, column: str, text: str) -> Any:
    """A number where rows are counted; elsewhere text that stays text: "=..." would become a formula."""
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    if not text:
        return None
    if column in NUMBERS:
        return int(text)
    cell = WriteOnlyCell(page, ILLEGAL_CHARACTERS_RE.sub("", text))
    cell.data_type = "s"
    return cell
