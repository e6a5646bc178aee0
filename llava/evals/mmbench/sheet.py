"""Which spreadsheet does the MMBench server accept? One sheet with every circular row.

The columns are a superset of what VLMEvalKit, LLaVA and XTuner upload; the server has refused files without ``answer``
(opencompass issue 240; blank is fine) or ``A`` (lmms-eval issue 6).
"""

from __future__ import annotations

import io
import string
from collections.abc import Mapping
from typing import Any

from llava.evals.mmbench.rows import Row, Table


def sheet(table: Table, predictions: Mapping[int, str]) -> bytes:
    """An .xlsx file in the rows' order.

    Args:
        table: the benchmark file.
        predictions: text by row index.
    """
    from openpyxl import Workbook

    used = {letter for row in table.rows for letter in row.options}
    letters = [letter for letter in string.ascii_uppercase if letter in used or letter in "ABCD"]
    book = Workbook(write_only=True)
    page = book.create_sheet("Sheet1")
    page.append(
        ["index", "question", "hint", *letters, "answer", "prediction", "category", "l2-category", "source", "split"]
    )
    for row in table.rows:
        page.append([row.index, *(_text(page, text) for text in _texts(row, letters, predictions[row.index]))])
    data = io.BytesIO()
    book.save(data)
    return data.getvalue()


def _texts(row: Row, letters: list[str], prediction: str) -> list[str]:
    options = [row.options.get(letter, "") for letter in letters]
    return [
        row.question,
        row.hint,
        *options,
        row.answer,
        prediction,
        row.category,
        row.l2_category,
        row.source,
        row.split,
    ]


def _text(page: Any, text: str) -> Any:
    """A cell that stays text: "=..." would become a formula and "#N/A" an error."""
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    if not text:
        return None
    cell = WriteOnlyCell(page, ILLEGAL_CHARACTERS_RE.sub("", text))
    cell.data_type = "s"
    return cell
