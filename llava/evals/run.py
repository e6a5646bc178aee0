"""How does an evaluation go: a shard's answers, then one score over all shards.

Everything lies in ``<run>/eval/<benchmark>/``: ``answers/`` (append only), what the benchmark writes
(``predictions.jsonl``, ``scores.json`` ...) and ``report.txt``; the baseline's answers and predictions in ``baseline/``
below it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.config import EvalConfig, EvalJob
from llava.errors import Interrupted
from llava.evals import fingerprint as fingerprints
from llava.evals.benchmark import Answered, Row, Table, named
from llava.evals.merge import merge
from llava.evals.progress import Progress
from llava.evals.shards import split
from llava.evals.store import Answer, AnswerFile, answered, remember_settings, stored
from llava.plain_text import plain
from llava.run_folder import ENV_RUN, RunFolder, write_aside

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A model that is asked: the one in question, or its baseline."""

    model: str
    folder: Path
    settings: dict[str, Any]

    @property
    def answers(self) -> Path:
        return self.folder / "answers"

    @property
    def fingerprint(self) -> str:
        return fingerprints.fingerprint(self.settings)


def subjects(job: EvalJob, table: Table) -> list[Subject]:
    """The model, then the baseline where there is one."""
    from llava.hf_model import checked_folder, template_of

    config = job.eval
    version = named(config.benchmark).prompt_version
    folder = RunFolder(Path(job.run_dir)).benchmark(config.benchmark)
    found = []
    for model, place in ((config.model, folder), (config.baseline, folder / "baseline")):
        if model is not None:
            template = template_of(checked_folder(model), config.template)
            settings = fingerprints.settings(
                table.md5, model, template, config.max_new_tokens, config.precision, version
            )
            found.append(Subject(model, place, settings))
    return found


def answer_shard(job: EvalJob, shard: int, shards: int, stop_asked: Callable[[], bool] = lambda: False) -> None:
    """Answer what is missing of one shard's rows, by the model and by the baseline.

    Args:
        job: the evaluation.
        shard: number of the shard, from 0.
        shards: of how many.
        stop_asked: looked at after each batch.

    Raises:
        Interrupted: asked to stop; the answers so far are kept.
        DataError, WeightsError, ConfigError: the file or a model cannot be used.
    """
    table = named(job.eval.benchmark).read(job.eval)
    mine = split(table.rows, shards)[shard]
    todo = [(subject, _missing(subject, mine)) for subject in subjects(job, table)]
    total = len(mine) * len(todo)
    missing = sum(len(rows) for _, rows in todo)
    log.info("shard %d of %d: %d rows, %d answered before", shard, shards, total, total - missing)
    with Progress(RunFolder(Path(job.run_dir)), shard, total, total - missing) as progress:
        for subject, rows in todo:
            if rows:
                _answer(job.eval, subject, table, rows, (shard, shards), progress, stop_asked)


def _missing(subject: Subject, rows: Sequence[Row]) -> list[Row]:
    done = answered(subject.answers, subject.fingerprint)
    return [row for row in rows if row.index not in done]


def _answer(
    config: EvalConfig,
    subject: Subject,
    table: Table,
    rows: list[Row],
    shard: tuple[int, int],
    progress: Progress,
    stop_asked: Callable[[], bool],
) -> None:
    from llava.evals.answer import answer_rows
    from llava.hf_model import load

    _stop_if_asked(stop_asked)
    remember_settings(subject.answers, subject.fingerprint, subject.settings)
    llava = load(subject.model, config.device, config.precision, config.template)
    log.info("%s on %s in %s, %d rows to answer", subject.model, llava.model.device, llava.dtype, len(rows))
    progress.start()
    with AnswerFile(subject.answers, *shard) as file:
        question = named(config.benchmark).question
        for texts in answer_rows(llava, table, rows, question, config.batch, config.max_new_tokens):
            file.add([Answer(i, t, subject.fingerprint, llava.dtype, config.batch) for i, t in texts.items()])
            if progress.add(len(texts)):
                file.flush()
            _stop_if_asked(stop_asked)


def _stop_if_asked(stop_asked: Callable[[], bool]) -> None:
    if stop_asked():
        raise Interrupted("asked to stop; the answers so far are kept", "Start again: only the rest is answered.")


def all_answered(job: EvalJob) -> bool:
    """Whether nothing is missing in any shard."""
    table = named(job.eval.benchmark).read(job.eval)
    return not any(_missing(subject, table.rows) for subject in subjects(job, table))


def finish(job: EvalJob) -> None:
    """Merge all shards, write the results and, by hand, print the table on stdout.

    Raises:
        DataError: a row was not answered, or the file cannot be used.
    """
    benchmark = named(job.eval.benchmark)
    table = benchmark.read(job.eval)
    answers = [_merged(job.eval, subject, table) for subject in subjects(job, table)]
    text = benchmark.report(job, table, answers)
    folder = RunFolder(Path(job.run_dir)).benchmark(job.eval.benchmark)
    write_aside(folder / "report.txt", text)
    # A launcher shows the report when the run ends; by hand, it belongs on stdout.
    if ENV_RUN in os.environ:
        log.info("all rows answered once; the scores are in %s", folder)
    else:
        print(plain(text), end="", flush=True)


def _merged(config: EvalConfig, subject: Subject, table: Table) -> Answered:
    merged = merge(table, stored(subject.answers), subject.fingerprint, config.shards or 1)
    if merged.repeated:
        log.warning("%s: %d answers were given twice, with equal text", subject.answers, merged.repeated)
    if len(merged.dtypes) > 1:
        log.warning("%s: answered in different number formats: %s", subject.answers, ", ".join(merged.dtypes))
    return Answered(subject.model, subject.folder, subject.fingerprint, merged)
