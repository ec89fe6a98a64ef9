"""Embeddings as the callbacks need them: computed once a batch, over a whole set, or of a capped held-out sample."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from lit_ssl.distributed import gather, row_counts, world_size
from lit_ssl.random import permuted

__all__ = ["Features", "HeldOutSample", "Part", "encode", "represent"]

Features = tuple[dict[str, Tensor], Tensor]

# By method: weak reference to a batch's images, state of the weights, embeddings.
_latest: dict[str, tuple[Any, Any, Tensor]] = {}


def represent(pl_module: Any, image: Tensor, method: str = "represent") -> Tensor:
    """``pl_module.represent(image)``, computed once for all callbacks that ask for the same batch and weights.

    Args:
        pl_module: has that method.
        image: uint8 (B, C, H, W).
        method: another one, such as ``represent_image``.

    Returns:
        float32 (B, D), without gradient; not to be changed in place.
    """
    tensors = [*pl_module.parameters(), *pl_module.buffers()]
    state = (id(pl_module), *((id(t), t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors))
    latest = _latest.get(method)
    if latest is not None and latest[0]() is image and latest[1] == state:
        return latest[2]
    x = getattr(pl_module, method)(image).detach()
    _latest[method] = (weakref.ref(image), state, x)
    return x


class Part(Dataset[Any]):
    """Some rows of a data set that serves batches, in the order given; -1 stays a padding row.

    Args:
        dataset: has ``__getitems__``.
        rows: their places in it.
    """

    def __init__(self, dataset: Any, rows: Sequence[int]) -> None:
        self.dataset, self.rows = dataset, list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[self.rows[i]]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self.dataset.__getitems__([self.rows[i] if i >= 0 else -1 for i in indices])


def encode(
    datamodule: Any,
    dataset: Any,
    encoders: Mapping[str, Callable[[Tensor], Tensor]],
    *,
    device: torch.device,
    max_rows: int | None = None,
    seed: int = 0,
) -> Features:
    """Runs encoders over a set, each rank over its share. A collective call: every rank must make it.

    Args:
        datamodule: has ``loader(dataset)``.
        dataset: one of its sets.
        encoders: each maps uint8 (B, C, H, W) on ``device`` to (B, D).
        device: where results live.
        max_rows: at most this many rows, chosen by the seed.
        seed: chooses them.

    Returns:
        features (N, D) float32 by encoder, and labels (N,) int64, in the order of the set; the same on every rank.
    """
    if max_rows is not None and len(dataset) > max_rows:
        chosen = permuted(torch.arange(max_rows), len(dataset), seed, "part")
        dataset = Part(dataset, chosen.sort().values.tolist())
    found: dict[str, list[Tensor]] = {name: [] for name in encoders}
    labels, indices = [], []
    with torch.no_grad():
        for batch in datamodule.loader(dataset):
            image = batch["image"].to(device, non_blocking=True)
            keep = (batch["index"] >= 0).nonzero().flatten()  # on the host still
            for name, encoder in encoders.items():
                found[name].append(encoder(image).float()[keep.to(device)])
            labels.append(batch["label"][keep])
            indices.append(batch["index"][keep])
        index = torch.cat(indices).to(device)
        counts = row_counts(len(index))
        order = gather(index, counts).argsort()
        x = {name: gather(torch.cat(parts), counts)[order] for name, parts in found.items()}
        return x, gather(torch.cat(labels).to(device), counts)[order]


class HeldOutSample:
    """Up to ``max_samples`` rows of what a validation or test passes by, spread evenly over its batches.

    Spread, because the images of a set are often sorted by class.
    """

    def __init__(self, max_samples: int) -> None:
        self.max_samples = max_samples
        self._parts: dict[str, list[Tensor]] = {}
        self._rows = self._taken = 0

    def start(self, trainer: Trainer) -> None:
        """Forget what was taken, and see from the number of batches how many rows to take of each."""
        self._parts, self._taken = {}, 0
        batches = sum(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
        self._limit = math.ceil(self.max_samples / world_size())
        self._rows = math.ceil(self._limit / batches) if math.isfinite(batches) and batches else self._limit

    def rows(self, available: int) -> int:
        """How many of the ``available`` rows of the next batch to take; the first ones are meant."""
        return min(available, self._rows, self._limit - self._taken)

    def add(self, **parts: Tensor) -> None:
        """Rows of equal number, by name."""
        for name, part in parts.items():
            self._parts.setdefault(name, []).append(part)
        self._taken += len(next(iter(parts.values())))

    def gathered(self, pl_module: LightningModule, names: Sequence[str]) -> dict[str, Tensor]:
        """What all ranks took under these names. A collective call; a name is left out unless every rank has rows."""
        out = {}
        for name in names:
            parts = self._parts.get(name, [])
            counts = row_counts(sum(map(len, parts)))
            if min(counts) > 0:
                out[name] = gather(torch.cat(parts).to(pl_module.device), counts)
        self._parts = {}
        return out
