"""The order of samples: a pure function of (seed, epoch), the same on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, SequentialSampler

from lit_ssl.random import permuted

__all__ = ["SequentialShards", "ShardedSampler"]

_CHUNK = 1 << 16  # positions computed at a time: a millisecond or two of work, half a megabyte of memory


class ShardedSampler(DistributedSampler[int]):
    """Yields this process's slice of each global batch.

    A global batch is ``batch_size * num_replicas`` consecutive positions of the epoch's order; process r holds its rows
    ``r * batch_size`` to ``(r + 1) * batch_size``. One process with a batch of 64 and two with a batch of 32 each take
    the same steps on the same images.

    Training (``shuffle=True``) drops the last incomplete global batch. Evaluation splits it as evenly as possible, in
    order, and yields one -1 (a padding row, see :class:`ImageTensors`) only to a process that would otherwise be left
    without a row, and so without a step that the others wait for.

    The order comes from :func:`lit_ssl.random.permuted`: nothing is stored per sample, and any place in it is known
    without the places before it, which is what makes resuming in the middle of an epoch exact and immediate.

    It subclasses ``DistributedSampler`` because that is what Lightning leaves alone under every strategy.

    Args:
        dataset: anything with a length.
        batch_size: rows per process and step, at least 1.
        num_replicas: number of processes.
        rank: this process, from 0 to ``num_replicas - 1``.
        shuffle: a keyed permutation of each epoch, for training; otherwise the order of the data set.
        seed: of the permutation.
        position: returns (epoch, batches of it already done). It is asked when the first index of an epoch is taken,
            not earlier: Lightning creates iterators before it has restored its counters. Without it, the epoch is the
            one given to :meth:`set_epoch`, from its start.
        pairs: yield (epoch, index) in place of the index, for data sets that draw by key; the epoch is -1 without
            ``shuffle``.

    Raises:
        ValueError: an argument out of range, or ``shuffle`` with fewer images than one global batch.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        position: Callable[[], tuple[int, int]] | None = None,
        pairs: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        super().__init__(cast(Any, dataset), num_replicas, rank, shuffle=shuffle, seed=seed, drop_last=shuffle)
        self.batch_size = batch_size
        self.position = position
        self.pairs = pairs
        self.global_batch = batch_size * num_replicas
        self.full_batches, rest = divmod(len(dataset), self.global_batch)
        if shuffle and not self.full_batches:
            raise ValueError(
                f"{len(dataset)} images do not fill one global batch of {self.global_batch} "
                f"(batch_size={batch_size} on each of {num_replicas} processes): lower batch_size to "
                f"{len(dataset) // num_replicas} or less"
            )
        share, extra = divmod(0 if shuffle else rest, num_replicas)
        self._tail_start = self.full_batches * self.global_batch + rank * share + min(rank, extra)
        self._tail_rows = share + (rank < extra)
        self._tail_padding = int(not shuffle and rest > 0 and self._tail_rows == 0)
        self.num_samples = self.full_batches * batch_size + self._tail_rows + self._tail_padding
        self.total_size = len(dataset) if not shuffle else self.full_batches * self.global_batch

    def __len__(self) -> int:
        """Indices in a whole epoch of this process, wherever in it a resumed run starts."""
        return self.num_samples

    def _order(self, place: Tensor, epoch: int) -> list[int]:
        if self.shuffle:
            place = permuted(place, len(cast(Sized, self.dataset)), self.seed, f"order/{epoch}")
        return place.tolist()

    def __iter__(self) -> Iterator[Any]:
        epoch, done = self.position() if self.position is not None else (self.epoch, 0)
        indices = self._indices(epoch, done)
        trained = self.shuffle or self.position is not None
        yield from ((epoch if trained else -1, index) for index in indices) if self.pairs else indices

    def _indices(self, epoch: int, done: int) -> Iterator[int]:
        own = torch.arange(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        step = max(1, _CHUNK // self.batch_size)
        for first in range(done, self.full_batches, step):
            batches = torch.arange(first, min(first + step, self.full_batches))
            yield from self._order((batches[:, None] * self.global_batch + own).flatten(), epoch)
        if done <= self.full_batches:
            yield from range(self._tail_start, self._tail_start + self._tail_rows)
            yield from [-1] * self._tail_padding


class SequentialShards(ShardedSampler, SequentialSampler):
    """For ``overfit_batches``: the data set's order in each epoch. Lightning leaves alone what is sequential."""
