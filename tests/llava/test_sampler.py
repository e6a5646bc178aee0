"""The order of samples: every sample, any number of ranks, alike lengths together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

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


def test_the_plain_order_is_xtuners_for_a_seed() -> None:
    """mmengine's DefaultSampler shuffles with a generator seeded with seed + epoch."""
    for seed, epoch in ((7, 0), (7, 1), (1024, 2)):
        expected = torch.randperm(100, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        assert schedule(100, seed=seed).epoch(epoch)[:100].tolist() == expected
    assert schedule(12, seed=7).epoch(1)[:12].tolist() == EPOCH, "nor does it change between versions of torch"


EPOCH = [3, 10, 0, 6, 9, 4, 1, 7, 8, 2, 5, 11]


def test_the_grouped_order_is_xtuners_for_a_seed() -> None:
    """What XTuner 0.1.23's LengthGroupedSampler gave for these lengths and 4 samples a batch, epochs 0 and 1."""
    lengths = np.array([(7 * n) % 23 + 3 for n in range(26)])
    plan = Schedule(lengths, np.arange(26) % 4 != 1, 4, 2, 1024, True)
    assert [plan.epoch(number).tolist() for number in (0, 1)] == XTUNERS


XTUNERS = [
    [13, 15, 11, 7, 16, 18, 14, 10, 12, 2, 24, 4, 25, 5, 1, 17, 3, 8, 20, 0, 19, 6, 9, 22, 21, 23, 13, 15],
    [13, 12, 15, 10, 16, 18, 14, 7, 3, 19, 8, 4, 22, 9, 21, 17, 6, 11, 20, 23, 2, 25, 5, 24, 1, 0, 13, 12],
]


@pytest.mark.parametrize(("world", "accumulation", "device_batch"), [(1, 1, 8), (2, 1, 4), (2, 2, 2), (4, 2, 1)])
@pytest.mark.parametrize("pictures", [0.2, 0.7, 1.0])
def test_each_update_has_xtuners_samples_on_any_number_of_ranks(
    world: int, accumulation: int, device_batch: int, pictures: float
) -> None:
    random = np.random.RandomState(1)
    lengths, has_image = random.randint(5, 60, 403), random.rand(403) < pictures
    plan = Schedule(lengths, has_image, 8, device_batch, 1024, True)
    each = accumulation * device_batch
    for epoch in (0, 3):
        first = epoch * plan.steps_per_epoch
        dealt = [xtuners_ranks(plan, world, rank, 1024 + epoch) for rank in range(world)]
        mine = [list(plan.micro_batches_of(r, world, first, first + plan.steps_per_epoch)) for r in range(world)]
        for update in range(plan.steps_per_epoch):
            theirs = [sample for rank in dealt for sample in rank[update * each : (update + 1) * each]]
            ours = [m for rank in mine for m in rank[update * accumulation : (update + 1) * accumulation]]
            assert sorted(np.concatenate(ours).tolist()) == sorted(theirs), update


def xtuners_ranks(plan: Schedule, world: int, rank: int, seed: int) -> list[int]:
    """A rank's samples by XTuner's rules, in plain lists: every world-th of the wrapped order."""
    generator = torch.Generator().manual_seed(seed)
    size = max(1, min(plan.size // (4 * plan.global_batch), 50)) * plan.global_batch

    def falling(samples: list[int]) -> list[int]:
        return sorted(samples, key=lambda n: -plan.lengths[n])

    whole, left, kinds = [], [], 0
    for modality in (True, False):
        kind = [n for n in range(plan.size) if plan.has_image[n] == modality]
        if kind:
            kinds += 1
            shuffled = [kind[n] for n in torch.randperm(len(kind), generator=generator)]
            *full, last = [falling(shuffled[at : at + size]) for at in range(0, len(kind), size)]
            whole += full
            left += last
    if kinds == 2:
        whole = [whole[n] for n in torch.randperm(len(whole), generator=generator)]
    batches = [*whole, falling(left)]
    heads = [plan.lengths[batch[0]] for batch in batches]
    longest = batches[heads.index(max(heads))]
    batches[0][0], longest[0] = longest[0], batches[0][0]
    order = [n for batch in batches for n in batch]
    while len(order) % plan.global_batch:
        order.append(order[len(order) - plan.size])
    return order[rank::world]


def test_llavas_rules_group_within_a_global_batch() -> None:
    plan = replace(schedule(403, 16, 4, grouped=True), rules="llava")
    order = plan.epoch(1)
    assert set(order.tolist()) == set(range(403)) and len(order) == 416
    counts = [int(n.sum()) for n in (plan.has_image, ~plan.has_image)]
    whole = sum((n - 1) // 16 for n in counts)
    assert whole > 20
    kinds = []
    for batch in order[: whole * 16].reshape(-1, 16):
        assert len(set(plan.has_image[batch].tolist())) == 1
        kinds.append(bool(plan.has_image[batch[0]]))
        sums = plan.lengths[batch].reshape(4, 4).sum(1)
        assert sums.max() - sums.min() <= plan.lengths[batch].max(), "micro-batches of a batch are of even length"
    assert len(set(kinds)) == 2 and kinds != sorted(kinds) != kinds[::-1], "in any order"
    sorted_by_length = [bool((np.diff(plan.lengths[b]) <= 0).all()) for b in order.reshape(-1, 16)]
    assert sum(sorted_by_length) < 3
    # The samples of an update are the same however they are dealt out.
    for device_batch in (1, 2, 16):
        other = replace(plan, device_batch=device_batch).epoch(1)
        assert (np.sort(other.reshape(-1, 16)) == np.sort(order.reshape(-1, 16))).all()


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
