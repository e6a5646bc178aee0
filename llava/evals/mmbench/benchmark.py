"""MMBench and CCBench as the shared parts of an evaluation see them."""

from __future__ import annotations

from llava.config import EvalConfig
from llava.evals.benchmark import Benchmark
from llava.evals.mmbench.prompt import PROMPT_VERSION, picture_question
from llava.evals.mmbench.report import report
from llava.evals.mmbench.rows import Table, read


def _read(config: EvalConfig) -> Table:
    return read(config.data)


MMBENCH = Benchmark(PROMPT_VERSION, _read, picture_question, report)
