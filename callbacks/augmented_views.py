"""A picture of what a method really sees."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import interpolate, pad

from lit_ssl.checks import check_integer

from .pictures import save_picture
from .single import SingleCallback

__all__ = ["AugmentedViews", "grid"]


def _rgb(images: Tensor) -> Tensor:
    """(B, C, h, w) of any channel count to three: gray is repeated, of more than three the first three are shown."""
    channels = images.shape[1]
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    return pad(images, (0, 0, 0, 0, 0, 3 - channels)) if channels < 3 else images[:, :3]


def grid(columns: list[Tensor], height: int = 64) -> Tensor:
    """Images side by side: column j shows ``columns[j]``, row i its i-th image.

    Args:
        columns: each (B, C, h, w) in [0, 1], of any sizes and one B.
        height: of each tile in pixels, at least; its width follows the first column's shape.

    Returns:
        uint8 (H, W, 3), tiles 2 px apart on white.
    """
    h, w = columns[0].shape[2:]
    scale = max(1, -(-height // h))
    tile = (h * scale, w * scale)
    tiles = []
    for images in columns:
        images = _rgb(images.detach().float().cpu())
        whole = all(big % small == 0 for big, small in zip(tile, images.shape[2:], strict=True))
        images = interpolate(images, tile, mode="nearest") if whole else interpolate(images, tile, mode="bilinear")
        tiles.append(pad(images, (2, 2, 2, 2), value=1.0))
    rows = torch.cat(tiles, dim=3)  # (B, 3, h, W)
    picture = rows.permute(0, 2, 3, 1).flatten(0, 1)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


class AugmentedViews(SingleCallback):
    """Saves a picture of a few images (left) beside the views of them that the method is about to learn from.

    Taken from the batch itself, on its way into ``training_step``, so it shows what the run does, not what its
    configuration says. Logged as ``pictures/augmented-views``. Of files with ``clean_images=False`` the left column is
    what the first view crops.

    Args:
        samples: images, one a row; default 8.
        max_views: views of each at most; default 8.
        every_n_epochs: after the first batch of the run, again at the first batch of every n-th epoch; default 10.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, samples: int = 8, max_views: int = 8, every_n_epochs: int = 10) -> None:
        check_integer("samples", samples)
        check_integer("max_views", max_views)
        check_integer("every_n_epochs", every_n_epochs)
        self.samples, self.max_views, self.every_n_epochs = samples, max_views, every_n_epochs

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx != 0 or trainer.current_epoch % self.every_n_epochs != 0 or not batch.get("views"):
            return
        n = self.samples
        columns = [batch["image"][:n] / 255, *(view[:n] for view in batch["views"][: self.max_views])]
        save_picture(trainer, "augmented-views", lambda: grid(columns))
