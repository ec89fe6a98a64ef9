"""Images in memory, fetched by the batch, and the loader that all data modules use."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from lit_ssl.views import Batch
from lit_ssl.views.batch import with_image

__all__ = ["ImageTensors", "Loader", "check_labels", "collate", "outlast_signals"]


class ImageTensors(Dataset[Batch]):
    """Images held as one uint8 tensor. A batch is one gather, not B items and a collation.

    Args:
        images: uint8 (N, C, H, W); need not be contiguous.
        labels: int64 (N,), -1 for an image that has none; None where no image has one.

    Raises:
        TypeError: ``images`` are not uint8, or ``labels`` are not integers.
        ValueError: shapes other than these, or no images at all.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, 0 to 255, got {images.dtype}")
        if images.ndim != 4 or not len(images):
            raise ValueError(f"images must have shape (N, C, H, W) with N at least 1, got {tuple(images.shape)}")
        if labels is None:
            labels = torch.full((len(images),), -1)
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(f"labels must be integers, got {labels.dtype}")
        if labels.shape != (len(images),):
            raise ValueError(f"labels must have shape ({len(images)},), one per image, got {tuple(labels.shape)}")
        self.images = images
        self.labels = labels.to(torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """The number of images and a hash of some of them, for checkpoints."""
        some = self.images[:: max(1, len(self.images) // 1024)]
        digest = hashlib.blake2b(some.contiguous().numpy().tobytes(), digest_size=6).hexdigest()
        return f"{len(self.images):,} of {tuple(self.images.shape[1:])} (pixels {digest})"

    def __getitem__(self, i: int) -> Batch:
        """One sample: ``image`` uint8 (C, H, W), ``label`` and ``index`` int64 scalars."""
        if not -1 <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} images")
        return {name: rows[0] for name, rows in self.__getitems__([i]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch: ``image`` uint8 (B, C, H, W), ``label`` and ``index`` int64 (B,).

        Index -1 is a padding row: some image, with label and index -1.
        """
        index = torch.from_numpy(np.array(indices, dtype=np.int64))
        row = index.clamp(min=0)
        label = torch.where(index < 0, -1, self.labels.index_select(0, row))
        return {"image": self.images.index_select(0, row), "label": label, "index": index}


def check_labels(name: str, dataset: Any, num_classes: int | None) -> None:
    """Raises ValueError unless the labels of a set are class numbers below ``num_classes``, or -1 for none."""
    labels = getattr(dataset, "labels", None)
    if num_classes is None or not isinstance(labels, Tensor) or not len(labels):
        return
    least, greatest = int(labels.min()), int(labels.max())
    if least < -1 or greatest >= num_classes:
        raise ValueError(
            f"labels of {name} must be from 0 to {num_classes - 1} (num_classes={num_classes}), or -1 for none, got "
            f"{least if least < -1 else greatest}"
        )


def collate(batch: Any) -> Batch:
    """A batch that ``__getitems__`` made passes as it is; a list of samples is stacked."""
    batch = batch if isinstance(batch, dict) else cast(Batch, default_collate(batch))
    if get_worker_info() is not None:
        # The queue to the main process would do so in a thread, where an error (no space left in /dev/shm) is printed,
        # the batch is lost, and the run waits for it for ever. Here it is the worker's, and so the run's.
        for value in batch.values():
            if isinstance(value, Tensor):
                value.share_memory_()
    return batch


def outlast_signals(worker: int) -> None:
    """A worker's ``worker_init_fn``: it serves the process that trains as long as that lives, and ends with it.

    A scheduler sends SIGTERM and SIGUSR1 to all processes of a job. A run saves on them (see
    :class:`~lit_ssl.callbacks.Preemption`), for which the batches on their way have to arrive, however long a
    validation takes; a worker that died would stop it before that. SIGTERM from the process that trains itself ends a
    worker that it no longer needs.
    """
    if hasattr(signal, "sigtimedwait"):  # neither Windows nor macOS, where a worker dies of signals as others do
        parent = os.getppid()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for all threads: the one below waits for it
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process when ``parent`` asks for it or is gone."""
    while os.getppid() == parent:
        caught = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if caught is not None and caught.si_pid == parent:
            break
    os._exit(0)


class Loader(DataLoader[Batch]):
    """A ``DataLoader`` that starts nothing before its first batch is asked for.

    Lightning creates iterators before it restores its counters; workers would then prefetch the wrong epoch. Batches
    that hold nothing but crops get their ``image`` here, behind the workers and the pinning, for no copy.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            yield with_image(batch) if isinstance(batch, dict) else batch

    def state_dict(self) -> dict[str, Any]:
        """Empty: the place in the epoch is the trainer's, which the sampler reads. Tells Lightning we can resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""
