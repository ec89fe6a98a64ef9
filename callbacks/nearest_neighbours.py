"""A picture of what the encoder finds alike."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import normalize

from lit_ssl import ImageSpec
from lit_ssl.checks import check_integer
from lit_ssl.random import permuted
from lit_ssl.views import clean

from .augmented_views import grid
from .features import HeldOutSample, represent
from .pictures import save_picture
from .schedule import due_or_last
from .single import SingleCallback

__all__ = ["NearestNeighbours", "nearest"]

_SIDE = 96  # pixels of the longer side up to which images are kept; larger ones are kept small
_SAME, _OTHER = (0, 114, 178), (213, 94, 0)  # blue and vermilion of Okabe & Ito, told apart by the colour-blind too


def nearest(x: Tensor, queries: Tensor, k: int) -> Tensor:
    """The rows most alike to some of the rows, by cosine similarity; never a row itself.

    Args:
        x: floating-point (N, D).
        queries: int64 (Q,), rows of ``x``.
        k: neighbours; where there are fewer other rows, all of them.

    Returns:
        int64 (Q, min(k, N - 1)), the nearest first.
    """
    x = normalize(x.float(), dim=1)
    similarity = (x[queries] @ x.mT).scatter(1, queries[:, None], -torch.inf)
    return similarity.topk(min(k, len(x) - 1), dim=1).indices


class NearestNeighbours(SingleCallback):
    """Saves a picture of held-out images, each beside the held-out images whose embeddings are nearest to its own.

    One query a row, at the left; its neighbours follow, the nearest first, by cosine similarity over a sample of at
    most ``max_samples`` images spread evenly over the batches. Where both have labels, a neighbour of the query's class
    has a blue frame and one of another class an orange one. The queries are the same at every drawing. Logged as
    ``pictures/nearest-neighbours``.

    Args:
        queries: rows of the picture; default 8.
        k: neighbours of each; default 8.
        max_samples: images over all ranks among which neighbours are looked for, kept at 96 pixels at most; default
            2,000.
        every_n_epochs: act at the validation of every n-th epoch; default 10. The last epoch is always drawn.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, queries: int = 8, k: int = 8, max_samples: int = 2000, every_n_epochs: int = 10) -> None:
        check_integer("queries", queries)
        check_integer("k", k)
        check_integer("max_samples", max_samples, 2)
        check_integer("every_n_epochs", every_n_epochs)
        self.queries, self.k, self.max_samples, self.every_n_epochs = queries, k, max_samples, every_n_epochs
        self._sample = HeldOutSample(max_samples)
        self._due = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due = due_or_last(trainer, self.every_n_epochs)
        if self._due:
            self._sample.start(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        rows = self._sample.rows(len(batch["image"])) if self._due and not dataloader_idx else 0
        if rows > 0:
            parts = {name: batch[name][:rows] for name in ("label", "index")}
            image = _small(batch["image"][:rows], pl_module)
            self._sample.add(x=represent(pl_module, batch["image"])[:rows], image=image, **parts)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._due:
            return
        sample = self._sample.gathered(pl_module, ("x", "image", "label", "index"))
        if "x" in sample and len(sample["x"]) >= 2 and bool(torch.isfinite(sample["x"]).all()):
            save_picture(trainer, "nearest-neighbours", lambda: self._draw(**sample))

    def _draw(self, x: Tensor, image: Tensor, label: Tensor, index: Tensor) -> Tensor:
        order = index.argsort(stable=True)  # the data set's, however many ranks took the sample
        x, image, label = x[order], image[order].cpu(), label[order].cpu()
        chosen = permuted(torch.arange(min(self.queries, len(x))), len(x), 0, "nearest-neighbours").sort().values
        found = nearest(x, chosen.to(x.device), self.k).cpu()
        picture = grid([image[rows] / 255 for rows in (chosen, *found.unbind(1))])
        _frame(picture, label[chosen], label[found])
        return picture


def _small(image: Tensor, pl_module: LightningModule) -> Tensor:
    """What the encoder sees of uint8 images, as uint8 images of at most ``_SIDE`` pixels, all of one size."""
    spec: Any = pl_module.spec
    scale = min(1.0, _SIDE / max(spec.size))
    height, width = (max(1, round(side * scale)) for side in spec.size)
    return (clean(image, ImageSpec((height, width), spec.channels)) * 255).round().to(torch.uint8)


def _frame(picture: Tensor, query: Tensor, found: Tensor) -> None:
    """Colours the edge of each neighbour's tile, in place, by whether its label is the query's.

    picture: uint8 (H, W, 3) of ``grid``; query: int64 (Q,), found: int64 (Q, K), -1 for no label.
    """
    tiles = picture.unflatten(0, (len(query), -1)).unflatten(2, (1 + found.shape[1], -1))
    for row, column in (found >= 0).nonzero().tolist():
        if query[row] >= 0:
            tile = tiles[row, 2:-2, 1 + column, 2:-2]  # a view into the picture
            colour = torch.tensor(_SAME if found[row, column] == query[row] else _OTHER, dtype=torch.uint8)
            for edge in (tile[:3], tile[-3:], tile[:, :3], tile[:, -3:]):
                edge.copy_(colour.expand_as(edge))
