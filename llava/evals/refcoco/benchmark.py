"""RefCOCO as the shared parts of an evaluation see it."""

from __future__ import annotations

from llava.config import EvalConfig
from llava.evals.benchmark import Benchmark
from llava.evals.refcoco.phrases import PROMPT_VERSION, picture_question
from llava.evals.refcoco.report import report
from llava.evals.refcoco.rows import Row, Table, read


def _read(config: EvalConfig) -> Table:
    return read(config.data, config.images)


def _question(row: Row) -> str:
    return picture_question(row.phrase)


REFCOCO = Benchmark(PROMPT_VERSION, _read, _question, report)
