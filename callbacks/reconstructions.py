"""A picture of what a method makes of images it has seen only in part, or through a code."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lit_ssl.checks import check_integer

from .augmented_views import grid
from .drawing import labelled, require
from .features import HeldOutSample
from .pictures import save_picture
from .schedule import due_or_last
from .single import SingleCallback

__all__ = ["Reconstructions"]


class Reconstructions(SingleCallback):
    """Saves a picture of held-out images, one a row: the input, what the method saw of it, and what it made of that.

    For every method that has ``reconstruct`` (MAE and Fusion: input, masked, output; VAE: input, binarised if it is,
    output). Images and masks are the same at every drawing. Logged as ``pictures/reconstructions``.

    Args:
        samples: images over all ranks, one a row; default 8.
        every_n_epochs: act at the validation of every n-th epoch; default 10. The last epoch is always drawn.

    Raises:
        ValueError: an argument out of range.
        MisconfigurationException: the method has no ``reconstruct``.
    """

    needs = "reconstruct"

    def __init__(self, samples: int = 8, every_n_epochs: int = 10) -> None:
        check_integer("samples", samples)
        check_integer("every_n_epochs", every_n_epochs)
        self.samples, self.every_n_epochs = samples, every_n_epochs
        self._sample = HeldOutSample(samples)
        self._due = self._unable = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        require(self, pl_module)
        self._unable = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due = due_or_last(trainer, self.every_n_epochs) and not self._unable
        if self._due:
            self._sample.start(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        rows = self._sample.rows(len(batch["image"])) if self._due and not dataloader_idx else 0
        if rows > 0:
            # Clean views, which all have one size; the clean view of such an image is the image itself.
            image = (pl_module.clean(batch["image"][:rows]).float() * 255).round().to(torch.uint8)
            self._sample.add(image=image, key=batch["key"][:rows], index=batch["index"][:rows])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        sample = self._sample.gathered(pl_module, ("image", "key", "index")) if self._due else {}
        if "image" not in sample:
            return
        order = sample["index"].argsort(stable=True)  # the data set's, however many ranks took the sample
        image, key = sample["image"][order][: self.samples], sample["key"][order][: self.samples]
        try:
            columns = pl_module.reconstruct(image, key.cpu())
        except MisconfigurationException as error:  # what watches a run does not end it
            rank_zero_warn(f"no pictures of reconstructions: {error}")
            self._unable = True
            return
        save_picture(trainer, "reconstructions", lambda: _draw(columns))


def _draw(columns: dict[str, Tensor]) -> Any:
    return labelled(grid(list(columns.values())), list(columns))
