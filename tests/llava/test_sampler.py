"""The order of samples: every sample, any number of ranks, alike lengths together."""

from __future__ import annotations

import numpy as np
import pytest

from llava.data.sampler import Schedule, check_split
from llava.errors import ConfigError


def schedule(
    size: int = 100, global_batch: int = 8, device_batch: int = 2, grouped: bool = False, seed: int = 3
) -> Schedule:
    random = np.random.RandomState(0)
    return Schedule(
        lengths=random.randint(5, 500, size),
        has_image=random.rand(size) < 0.7,
        global_batch=global_batch,
        device_batch=device_batch,
        seed=seed,
        group_by_length=grouped,
    )


@pytest.mark.parametrize(("records", "batch", "steps"), [(558_128, 256, 2181), (665_298, 128, 5198), (3, 8, 1)])
def test_updates_an_epoch_are_the_recipes(records: int, batch: int, steps: int) -> None:
    plan = Schedule(np.ones(records, np.int64), np.ones(records, bool), batch, 1, 0, False)
    assert plan.steps_per_epoch == steps
    assert plan.total_steps(1.0, None) == steps
    assert plan.total_steps(2.0, None) == 2 * steps
    assert plan.total_steps(1.0, 2) == min(2, steps)


def test_parts_of_an_epoch() -> None:
    plan = schedule(240)  # 30 updates an epoch
    assert [plan.total_steps(e, None) for e in (0.1, 0.5, 0.51, 1.1, 1e-9)] == [3, 15, 16, 33, 1]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("size", [5, 8, 100, 403])
def test_an_epoch_is_every_sample_then_a_wrap(size: int, grouped: bool) -> None:
    plan = schedule(size, grouped=grouped)
    order = plan.epoch(0)
    assert len(order) == plan.steps_per_epoch * 8
    assert sorted(order[:size]) == list(range(size))
    assert (order[size:] == np.resize(order[:size], len(order))[size:]).all()
    assert (plan.epoch(0) == order).all()
    assert size < 9 or (plan.epoch(1) != order).any()
    assert size < 9 or (schedule(size, grouped=grouped, seed=4).epoch(0) != order).any()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_micro_batches_are_the_same_for_every_number_of_ranks(world: int) -> None:
    plan = schedule()
    whole = list(plan.micro_batches_of(0, 1, 0, 30))  # two epochs and more
    for rank in range(world):
        mine = list(plan.micro_batches_of(rank, world, 0, 30))
        for place, micro_batch in enumerate(mine):
            step, a = divmod(place, 4 // world)
            assert (micro_batch == whole[step * 4 + a * world + rank]).all()
        later = list(plan.micro_batches_of(rank, world, 17, 30))
        assert [m.tolist() for m in later] == [m.tolist() for m in mine[17 * 4 // world :]]


def test_grouped_order_follows_the_rules() -> None:
    plan = schedule(400, global_batch=8, grouped=True)
    order = plan.epoch(2)
    size = 12 * 8  # min(400 // (4 x 8), 50) global batches
    assert plan.lengths[order[0]] == plan.lengths.max()
    counts = (int(plan.has_image.sum()), int((~plan.has_image).sum()))
    starts = [n * size for n in range(sum((n - 1) // size for n in counts))]
    last = starts[-1] + size
    assert last < 400

    def follows(place: int) -> bool:
        """With the longest sample back at the head of the megabatch that it came from."""
        back = order.copy()
        back[[0, place]] = back[[place, 0]]
        chunks = [back[start : start + size] for start in starts]
        one_kind = all(len(set(plan.has_image[chunk].tolist())) == 1 for chunk in chunks)
        mixed = len(set(plan.has_image[back[last:]].tolist())) == 2
        falling = all((np.diff(plan.lengths[chunk]) <= 0).all() for chunk in (*chunks, back[last:]))
        return one_kind and mixed and falling

    assert any(follows(place) for place in (*starts, last))


def test_grouping_cuts_padding() -> None:
    def padding(plan: Schedule) -> float:
        batches = plan.lengths[plan.epoch(0)].reshape(-1, plan.device_batch)
        return 1 - float(batches.sum() / (batches.max(1) * plan.device_batch).sum())

    assert padding(schedule(2000, 32, 8, grouped=True)) < 0.05 < 0.3 < padding(schedule(2000, 32, 8))


def test_order_does_not_change_between_versions() -> None:
    assert schedule(12, seed=7).epoch(1)[:12].tolist() == EPOCH
    assert schedule(12, seed=7, grouped=True).epoch(1)[:12].tolist() == GROUPED


EPOCH = [9, 6, 8, 10, 3, 11, 7, 0, 5, 4, 1, 2]
GROUPED = [7, 4, 10, 5, 11, 9, 6, 3, 0, 2, 1, 8]


def test_impossible_splits_name_what_works() -> None:
    check_split(8, 2, 4)
    with pytest.raises(ConfigError) as error:
        check_split(12, 2, 4)
    assert error.value.message == (
        "global_batch 12 makes 6 micro-batches of device_batch 2, which 4 ranks cannot share evenly"
    )
    assert error.value.hint == "ranks that work: 1, 2, 3, 6; or train.device_batch: 1, 3"
    with pytest.raises(ConfigError) as error:
        check_split(8, 2, 16)
    assert error.value.hint == "ranks that work: 1, 2, 4"
