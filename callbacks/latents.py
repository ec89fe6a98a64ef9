"""Pictures of a latent space: what each coordinate means, and what the prior holds."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_ssl.checks import check_integer, check_positive
from lit_ssl.random import resolve_seed

from .augmented_views import grid
from .drawing import labelled, require
from .features import HeldOutSample, represent
from .pictures import save_picture
from .schedule import due_or_last
from .single import SingleCallback

__all__ = ["LatentSamples", "LatentTraversals", "traverse"]


def traverse(codes: Tensor, dimensions: int, steps: int, span: float) -> tuple[Tensor, list[int]]:
    """The first code with one coordinate at a time moved from -span to span, as in beta-VAE (Higgins et al. 2017).

    Coordinates come in the order of their activity, the variance of their posterior mean over images (Burda et al.
    2016, arXiv:1509.00519, section 5.2): those that have collapsed onto the prior come last.

    Args:
        codes: (N, Z), posterior means.
        dimensions: coordinates to move; all of them where there are fewer.
        steps: values of each.
        span: the greatest value, in the prior's standard deviations.

    Returns:
        codes (D, steps, Z), and the number of each of the D coordinates.
    """
    chosen = codes.var(0, correction=0).argsort(descending=True, stable=True)[:dimensions]
    z = codes[0].repeat(len(chosen), steps, 1)
    values = torch.linspace(-span, span, steps, dtype=z.dtype, device=z.device)
    moved = values.expand(len(chosen), steps)[..., None]
    return z.scatter(2, chosen[:, None, None].expand(-1, steps, 1), moved), chosen.tolist()


class LatentTraversals(SingleCallback):
    """Saves a picture of one held-out image with its latents moved one at a time: a latent a row, most active first.

    For methods that have ``decode`` and embed an image as its code (VAE). Logged as ``pictures/latent-traversals``.

    Args:
        dimensions: latents, at most; default 8.
        steps: values of each; default 9.
        span: from minus this to this, in the prior's standard deviations. Default 3 (Higgins et al. 2017, beta-VAE).
        max_samples: held-out images over all ranks that tell how active a latent is; default 512.
        every_n_epochs: act at the validation of every n-th epoch; default 10. The last epoch is always drawn.

    Raises:
        ValueError: an argument out of range.
        MisconfigurationException: the method has no ``decode``.
    """

    needs = "decode"

    def __init__(
        self, dimensions: int = 8, steps: int = 9, span: float = 3.0, max_samples: int = 512, every_n_epochs: int = 10
    ) -> None:
        check_integer("dimensions", dimensions)
        check_integer("steps", steps, 2)
        check_positive("span", span)
        check_integer("max_samples", max_samples)
        check_integer("every_n_epochs", every_n_epochs)
        self.dimensions, self.steps, self.span = dimensions, steps, span
        self.max_samples, self.every_n_epochs = max_samples, every_n_epochs
        self._sample = HeldOutSample(max_samples)
        self._due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        require(self, pl_module)

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
            self._sample.add(code=represent(pl_module, batch["image"])[:rows], index=batch["index"][:rows])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        sample = self._sample.gathered(pl_module, ("code", "index")) if self._due else {}
        if "code" not in sample or not bool(torch.isfinite(sample["code"]).all()):
            return
        codes = sample["code"][sample["index"].argsort(stable=True)]
        z, latents = traverse(codes, self.dimensions, self.steps, self.span)
        images = pl_module.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        values = [f"{value:.3g}" for value in torch.linspace(-self.span, self.span, self.steps).tolist()]
        rows = [f"z{latent}" for latent in latents]
        save_picture(trainer, "latent-traversals", lambda: labelled(grid(list(images.unbind(1))), values, rows))


class LatentSamples(SingleCallback):
    """Saves a picture of images drawn from the prior, from the same latents at every drawing.

    For methods that have ``sample`` (VAE). Logged as ``pictures/latent-samples``.

    Args:
        rows, columns: of the picture; default 8 x 8.
        seed: of the latents; default 0.
        every_n_epochs: act at the validation of every n-th epoch; default 10. The last epoch is always drawn.

    Raises:
        ValueError: an argument out of range.
        MisconfigurationException: the method has no ``sample``.
    """

    needs = "sample"

    def __init__(self, rows: int = 8, columns: int = 8, seed: int = 0, every_n_epochs: int = 10) -> None:
        check_integer("rows", rows)
        check_integer("columns", columns)
        check_integer("every_n_epochs", every_n_epochs)
        self.rows, self.columns, self.seed, self.every_n_epochs = rows, columns, resolve_seed(seed), every_n_epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        require(self, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if due_or_last(trainer, self.every_n_epochs):
            images = pl_module.sample(self.rows * self.columns, self.seed).unflatten(0, (self.rows, self.columns))
            save_picture(trainer, "latent-samples", lambda: grid(list(images.unbind(1))))
