"""DeepSpeed ZeRO-2 and ZeRO-3 on two real ranks: the numbers of plain data parallelism, checkpoints for all."""

from __future__ import annotations

import importlib.util
import shutil
import signal
from pathlib import Path

import pytest

from llava.model.load import load_trained
from llava.run_folder import RunFolder
from tests.llava.train_helpers import (
    Bases,
    end,
    events,
    losses,
    make_job,
    start_ranks,
    steps_saved,
    train_here,
    wait_for_step,
)

missing = [name for name in ("c++", "ninja") if shutil.which(name) is None]
if importlib.util.find_spec("deepspeed") is None:
    missing.append("deepspeed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # DeepSpeed compiles a part of itself at first use: about a minute
    pytest.mark.skipif(bool(missing), reason=f"DeepSpeed needs {', '.join(missing)}"),
]
UPDATES = 12


@pytest.fixture(scope="module")
def bases(tiny_language: Path, tiny_vision: Path, tiny_records: Path) -> Bases:
    return Bases(tiny_language, tiny_vision, tiny_records)


@pytest.fixture(scope="module")
def plain(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One rank, no ZeRO."""
    return train_here(make_job(bases, tmp_path_factory.mktemp("plain"), max_steps=UPDATES, learning_rate=1e-3))


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_same_numbers_and_checkpoints_for_any_strategy(
    bases: Bases, plain: RunFolder, tmp_path: Path, strategy: str
) -> None:
    run = RunFolder(tmp_path)

    def job(**changes: object) -> object:
        train = {"max_steps": UPDATES, "learning_rate": 1e-3, "save_every_steps": 4, "strategy": strategy, **changes}
        return make_job(bases, tmp_path, **train)

    agent = start_ranks(job())  # type: ignore[arg-type]
    wait_for_step(run, 2, agent)
    agent.send_signal(signal.SIGUSR2)
    code, output = end(agent)
    assert code == 175, output
    saved = steps_saved(run)[-1]
    assert saved == max(losses(run)) < UPDATES
    same_as(plain, run, 1, saved)
    assert events(run, "started")[0]["trainable"] == events(plain, "started")[0]["trainable"]

    other = RunFolder(shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "-other")))
    code, output = end(start_ranks(job(), 1))  # type: ignore[arg-type]
    assert code == 0, output + run.rank_log(1, 0).read_text()
    assert events(run, "resumed")[0]["step"] == saved
    same_as(plain, run, saved + 1, UPDATES)
    assert load_trained(run.model).step == UPDATES

    train_here(job(strategy="ddp").model_copy(update={"run_dir": str(other.root)}))  # type: ignore[attr-defined]
    same_as(plain, other, saved + 1, UPDATES)


def same_as(plain: RunFolder, run: RunFolder, first: int, last: int) -> None:
    """Sums are taken in another order, so the last digits of float32 differ."""
    mine, theirs = losses(run), losses(plain)
    for step in range(first, last + 1):
        assert mine[step] == pytest.approx(theirs[step], rel=1e-4), step
