"""The learning rate of every update, by XTuner's rules and by LLaVA's, and which weights learn at which."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from llava import optim
from llava.errors import ConfigError
from llava.model.load import Loaded, build
from llava.optim import factor, warmup_steps
from llava.run_folder import read_lines
from tests.llava.train_helpers import Bases, make_job, train_here

RUNS = {"pretrain": (2181, 65), "finetune": (5198, 155)}
"""Updates of the published data, and XTuner's warm-up: int(0.03 x updates)."""


def xtuners(total: int, warmup_ratio: float) -> list[float]:
    """Every factor as mmengine 0.10 comes to it: each value from the one before.

    LinearLR from 1e-5 over the updates before int(ratio x total), then CosineAnnealingLR to 0 from there to the end,
    whose first step leaves the value as it is.
    """
    begin, start, value, seen = int(warmup_ratio * total), 1e-5, 1.0, []
    for step in range(total):
        if step < begin:
            line = begin - 1
            value *= start if step == 0 else 1 + (1 - start) / (line * start + (step - 1) * (1 - start))
        elif step > begin:
            past, length = step - begin, total - begin
            value *= (1 + math.cos(math.pi * past / length)) / (1 + math.cos(math.pi * (past - 1) / length))
        seen.append(value)
    return seen


@pytest.mark.parametrize("total", [67, 100, 2181, 5198, 39620])
def test_every_update_learns_at_xtuners_rate(total: int) -> None:
    mine = [factor(step, total, 0.03) for step in range(total)]
    difference = max(abs(a - b) for a, b in zip(mine, xtuners(total, 0.03), strict=True))
    assert difference < 1e-9


@pytest.mark.parametrize("stage", RUNS)
def test_the_published_runs_schedules(stage: str) -> None:
    total, warmup = RUNS[stage]
    assert warmup_steps(total, 0.03, "xtuner") == warmup
    assert factor(0, total, 0.03) == 1e-5
    assert factor(1, total, 0.03) == pytest.approx(1e-5 + (1 - 1e-5) / (warmup - 1))
    peaks = [step for step in range(total) if factor(step, total, 0.03) == 1]
    assert peaks == [warmup - 1, warmup], "the peak is used twice"
    half = warmup + (total - warmup) / 2
    assert factor(math.floor(half), total, 0.03) == pytest.approx(0.5, abs=1e-3)
    assert 0 < factor(total - 1, total, 0.03) == pytest.approx((math.pi / (total - warmup) / 2) ** 2, rel=1e-4)


def test_oddities_of_short_runs_are_not_copied() -> None:
    """XTuner fails below 34 updates, and does the whole of 34 at 1e-5 of the peak."""
    assert [factor(step, 4, 0.03) for step in range(4)] == pytest.approx([1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])
    run = [factor(step, 34, 0.03) for step in range(34)]
    assert run[:2] == [1e-5, 1] and run[1:] == sorted(run[1:], reverse=True)
    assert [factor(step, 3, 0) for step in range(3)] == pytest.approx([1, 0.75, 0.25])
    assert factor(0, 1, 0.5) == 1


@pytest.mark.parametrize("total", [1, 33, 100, 2181, 5198])
def test_llavas_rules_are_those_of_transformers(total: int) -> None:
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.03 * total), total)
    for step in range(total):
        assert factor(step, total, 0.03, "llava") == pytest.approx(schedule.get_last_lr()[0], abs=1e-12), step
        optimizer.step()
        schedule.step()


@pytest.fixture(scope="module")
def bases(tiny_language: Path, tiny_vision: Path, tiny_records: Path) -> Bases:
    return Bases(tiny_language, tiny_vision, tiny_records)


@pytest.mark.parametrize("rules", ["xtuner", "llava"])
def test_a_run_uses_the_rates_that_it_reports(bases: Bases, tmp_path: Path, rules: str) -> None:
    parts = {"projector": {"learning_rate": 2e-5}}
    train = {"learning_rate": 2e-4, "warmup_ratio": 0.3, "max_steps": 10, "rules": rules}
    run = train_here(make_job(bases, tmp_path, parts, **train))
    rates = [line["learning_rate"] for line in read_lines(run.metrics)]
    assert rates == pytest.approx([2e-4 * factor(step, 10, 0.3, rules) for step in range(10)])  # type: ignore[arg-type]
    assert (rates[0] == 0) is (rules == "llava")


def loaded_with(bases: Bases, language: str, vision: str, **rates: float) -> tuple[Loaded, list[optim.Group]]:
    model = {
        "language": {"path": str(bases.language), "tuning": language, "learning_rate": rates.get("language")},
        "vision": {"path": str(bases.vision), "tuning": vision},
        "projector": {"learning_rate": rates.get("projector")},
    }
    job = make_job(bases, Path("unused"), model, learning_rate=2e-4)
    loaded = build(job.model, torch.float32)
    return loaded, optim.groups(loaded.model, job.model, job.train)


@pytest.mark.parametrize("language", ["frozen", "full", "lora"])
@pytest.mark.parametrize("vision", ["frozen", "full", "lora"])
def test_groups_hold_every_trained_weight_once(bases: Bases, language: str, vision: str) -> None:
    loaded, groups = loaded_with(bases, language, vision)
    assert {group.part for group in groups} == {"projector"} | {
        part for part, tuning in (("language", language), ("vision", vision)) if tuning != "frozen"
    }
    assert {group.learning_rate for group in groups} == {2e-4}, "XTuner: one rate for all"
    held = [id(parameter) for group in groups for parameter in group.parameters.values()]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in loaded.model.parameters() if p.requires_grad}


def test_the_projector_may_learn_at_its_own_rate(bases: Bases) -> None:
    """LLaVA's finetune_lora.sh: mm_projector_lr 2e-5 beside 2e-4."""
    _, groups = loaded_with(bases, "lora", "frozen", projector=2e-5)
    assert {group.part: group.learning_rate for group in groups} == {"language": 2e-4, "projector": 2e-5}


def test_a_run_in_which_nothing_trains_is_refused(bases: Bases) -> None:
    job = make_job(bases, Path("unused"), {"projector": {"tuning": "frozen"}})
    frozen = job.model.model_copy(update={"language": job.model.language.model_copy(update={"tuning": "frozen"})})
    with pytest.raises(ConfigError, match="nothing trains"):
        optim.groups(build(frozen, torch.float32).model, frozen, job.train)
