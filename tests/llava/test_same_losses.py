"""The same weights, records and seed give the same losses however the work is shared: two recipes on tiny models.

One rank, accumulation, two ranks, ZeRO-2 and ZeRO-3, in float32, over the first 20 updates. The recipes are those of
the zoo's finetunes: the whole language model with the tower frozen, and LoRA on both with samples grouped by length.
Dropout is off, because its masks belong to a micro-batch, and the micro-batches differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.config import TrainJob
from llava.run_folder import RunFolder
from tests.llava.conftest import build_records
from tests.llava.test_zero import missing
from tests.llava.train_helpers import Bases, end, events, losses, make_job, start_script, train_here, write_config

UPDATES = 20
LARGEST = 1e-5
"""Largest difference of a loss, of the order of 1 to 10, that may come from sums in another order."""
FULL = {"language": {"tuning": "full"}, "vision": {"tuning": "frozen"}}
LORA = {
    "language": {"tuning": "lora", "lora": {"rank": 8, "alpha": 4, "dropout": 0}},
    "vision": {"tuning": "lora", "lora": {"rank": 4, "alpha": 1, "dropout": 0}},
}
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": (FULL, {"learning_rate": 2e-5}),
    "lora": (LORA, {"learning_rate": 2e-4, "group_by_length": True}),
}
ONE_RANK = {"accumulation 2": {"device_batch": 8}}
TWO_RANKS = {
    "2 ranks": {"device_batch": 8},
    "ZeRO-2, accumulation 2": {"device_batch": 4, "strategy": "zero2"},
    "ZeRO-3": {"device_batch": 8, "strategy": "zero3"},
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # DeepSpeed compiles a part of itself at first use: about a minute
    pytest.mark.skipif(bool(missing), reason=f"DeepSpeed needs {', '.join(missing)}"),
]


@pytest.fixture(scope="module")
def bases(tiny_language: Path, tiny_vision: Path, tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """More than a batch of each modality, so that grouping makes batches of text alone."""
    return Bases(tiny_language, tiny_vision, build_records(tmp_path_factory.mktemp("same") / "data", 72, 3))


def job_of(bases: Bases, recipe: str, run: Path, **train: Any) -> TrainJob:
    model, own = RECIPES[recipe]
    paths = {"language": str(bases.language), "vision": str(bases.vision)}
    parts = {part: {"path": paths[part], **values} for part, values in model.items()}
    train = {"device_batch": 16, **own, **train}
    return make_job(bases, run, parts, global_batch=16, max_steps=UPDATES, save_every_steps=100, **train)


@pytest.fixture(scope="module")
def runs(bases: Bases, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, RunFolder]]:
    """Every recipe shared in every way; the runs of two ranks in one start of them."""
    root = tmp_path_factory.mktemp("shared")

    def job(recipe: str, way: str, train: dict[str, Any]) -> TrainJob:
        return job_of(bases, recipe, root / recipe / way.replace(", ", "-").replace(" ", "-"), **train)

    together = {(recipe, way): job(recipe, way, train) for recipe in RECIPES for way, train in TWO_RANKS.items()}
    configs = [str(write_config(each)) for each in together.values()]
    code, output = end(start_script(root, "tests.llava.several_jobs", *configs))
    assert code == 0, output
    found: dict[str, dict[str, RunFolder]] = {recipe: {} for recipe in RECIPES}
    for (recipe, way), each in together.items():
        found[recipe][way] = RunFolder(Path(each.run_dir))
    for recipe in RECIPES:
        for way, train in {"1 rank": {}, "no learning": {"learning_rate": 1e-12}, **ONE_RANK}.items():
            found[recipe][way] = train_here(job(recipe, way, train))
    return found


@pytest.mark.parametrize("way", [*ONE_RANK, *TWO_RANKS])
@pytest.mark.parametrize("recipe", RECIPES)
def test_twenty_losses_are_the_same(
    runs: dict[str, dict[str, RunFolder]], recipe: str, way: str, record_property: Callable[[str, object], None]
) -> None:
    one, other, still = (losses(runs[recipe][name]) for name in ("1 rank", way, "no learning"))
    assert one.keys() == other.keys() == set(range(1, UPDATES + 1))
    assert still[UPDATES][0] - one[UPDATES][0] > 100 * LARGEST, "it learns"
    largest = max(abs(one[step][0] - other[step][0]) for step in one)
    record_property("largest difference of a loss", largest)
    print(f"{recipe}, {way}: largest difference of a loss {largest:.1e}")
    assert largest <= LARGEST
    started = events(runs[recipe][way], "started")[0]
    assert started["world_size"] == (2 if way in TWO_RANKS else 1)
    assert started["trainable"] == events(runs[recipe]["1 rank"], "started")[0]["trainable"]


@pytest.mark.parametrize("grouped", [False, True])
def test_batches_do_not_change_a_samples_loss(
    bases: Bases, tmp_path: Path, grouped: bool, record_property: Callable[[str, object], None]
) -> None:
    """Loss and tokens of every sample alone, and of the batches that it comes in."""
    from llava.data.images import Pictures
    from llava.data.index import TokenIndex, build_index
    from llava.data.loader import MicroBatches
    from llava.model.load import build
    from llava.templates import get
    from llava.train import make_schedule

    job = job_of(bases, "lora", tmp_path, group_by_length=grouped, device_batch=8)
    loaded = build(job.model, torch.float32, seed=1)
    model = loaded.model.eval()
    folder = build_index(job.data.records, loaded.tokenizer, get("vicuna"), 100, tmp_path, lambda: None)
    index = TokenIndex(folder)
    pictures = Pictures(job.data.images, loaded.processor, "pad")
    source = MicroBatches(index, pictures, model.vision.patches, model.vision.side)
    with torch.no_grad():
        alone = [model(source[torch.tensor([n]).numpy()]) for n in range(len(index))]
        largest, padded = 0.0, 0
        for batch in make_schedule(job, index).micro_batches_of(0, 1, 0, 4):
            loss, tokens = model(source[batch])
            assert tokens == sum(alone[n][1] for n in batch)
            largest = max(largest, abs(float(loss) - sum(float(alone[n][0]) for n in batch)) / tokens)
            padded += int((index.lengths[batch].max() - index.lengths[batch]).sum())
    record_property("largest difference of a token's loss", largest)
    print(f"grouped {grouped}: largest difference of a token's mean loss {largest:.1e}, {padded} places of padding")
    assert largest <= LARGEST and padded > 0
