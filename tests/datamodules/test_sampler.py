"""ShardedSampler: one order on any number of processes, from any place in it."""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DistributedSampler

from lit_ssl.datamodules import ShardedSampler

FEW = settings(max_examples=60, deadline=None)


def batches(n, batch_size, world, **kwargs):
    """What each rank is given: [rank][batch] -> list of indices."""
    samplers = [ShardedSampler(range(n), batch_size, num_replicas=world, rank=r, **kwargs) for r in range(world)]
    given_to = [list(BatchSampler(s, batch_size, drop_last=False)) for s in samplers]
    for sampler, own in zip(samplers, given_to, strict=True):
        assert len(sampler) == sum(map(len, own))
    return given_to


def joined(given_to):
    """The global batches: rows of all ranks, in rank order."""
    return [list(chain(*parts)) for parts in zip(*given_to, strict=True)]


@FEW
@given(
    per_rank=st.integers(1, 9),
    world=st.integers(1, 5),
    steps=st.integers(1, 6),
    rest=st.integers(0, 10**6),
    seed=st.integers(0, 2**32 - 1),
)
def test_training_takes_the_same_global_batches_on_any_number_of_processes(per_rank, world, steps, rest, seed):
    size = per_rank * world
    n = size * steps + rest % size
    alone = batches(n, size, 1, seed=seed)[0]
    assert joined(batches(n, per_rank, world, seed=seed)) == alone
    assert [len(batch) for batch in alone] == [size] * steps
    taken = list(chain(*alone))
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(range(n))


@FEW
@given(per_rank=st.integers(1, 6), world=st.integers(1, 5), n=st.integers(1, 100))
def test_evaluation_sees_each_image_once_and_pads_only_ranks_left_without_a_row(per_rank, world, n):
    size = per_rank * world
    given_to = batches(n, per_rank, world, shuffle=False)
    steps = -(-n // size)
    assert [len(own) for own in given_to] == [steps] * world
    together = joined(given_to)
    assert [i for batch in together for i in batch if i >= 0] == list(range(n))
    assert all(i >= 0 for batch in together[: n // size] for i in batch)
    last = [own[-1] for own in given_to]
    rows = [sum(i >= 0 for i in own) for own in last]
    assert max(rows) - min(rows) <= 1
    assert all(own == [-1] for own in last if min(own) < 0)
    assert sum(own == [-1] for own in last) == (max(0, world - n % size) if n % size else 0)


@FEW
@given(per_rank=st.integers(1, 6), world=st.integers(1, 3), steps=st.integers(1, 8), data=st.data())
def test_a_resumed_epoch_is_the_rest_of_the_whole_one(per_rank, world, steps, data):
    n = per_rank * world * steps + data.draw(st.integers(0, per_rank * world - 1))
    done, epoch = data.draw(st.integers(0, steps)), data.draw(st.integers(0, 5))
    whole = batches(n, per_rank, world, position=lambda: (epoch, 0))
    rest = [
        list(BatchSampler(ShardedSampler(range(n), per_rank, num_replicas=world, rank=r, position=at), per_rank, False))
        for r in range(world)
        for at in [lambda: (epoch, done)]
    ]
    assert rest == [own[done:] for own in whole]


def test_chunks_do_not_show(monkeypatch):
    module = __import__(ShardedSampler.__module__, fromlist=["_CHUNK"])
    whole = list(ShardedSampler(range(1000), 7, seed=3))
    monkeypatch.setattr(module, "_CHUNK", 20)
    assert list(ShardedSampler(range(1000), 7, seed=3)) == whole


def test_order_differs_between_epochs_and_seeds_and_repeats_for_the_same():
    def order(seed, epoch):
        sampler = ShardedSampler(range(500), 10, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 4
    assert sorted(orders[0, 0]) == list(range(500)) != list(orders[0, 0])
    assert order(1, 1) == orders[1, 1]


def test_position_is_asked_at_the_first_index_and_not_before():
    position = [0, 0]
    sampler = ShardedSampler(range(100), 10, position=lambda: tuple(position))
    iterator = iter(sampler)
    position[:] = [4, 3]
    assert list(iterator) == list(ShardedSampler(range(100), 10, position=lambda: (4, 3)))
    assert len(sampler) == 100


def test_lightning_leaves_it_alone():
    assert issubclass(ShardedSampler, DistributedSampler)


def test_nothing_is_stored_per_sample():
    sampler = ShardedSampler(range(10**12), 4)
    first = [i for _, i in zip(range(8), sampler, strict=False)]
    assert len(set(first)) == 8
    assert max(first) > 10**9


def test_too_few_images_for_one_global_batch_is_an_error():
    with pytest.raises(ValueError, match=r"20 images do not fill one global batch of 32 \(batch_size=16 on each of 2"):
        ShardedSampler(range(20), 16, num_replicas=2, rank=0)
    assert len(ShardedSampler(range(20), 16, num_replicas=2, rank=0, shuffle=False)) == 10


@pytest.mark.parametrize("kwargs", [{"batch_size": 0}, {"rank": 2, "num_replicas": 2}])
def test_arguments_out_of_range(kwargs):
    with pytest.raises(ValueError, match=r"batch_size|rank"):
        ShardedSampler(range(20), **{"batch_size": 1, **kwargs})
