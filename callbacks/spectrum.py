"""The health of a representation, seen without labels."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_ssl.checks import check_integer, check_positive
from lit_ssl.evaluation import alignment, alpha_req, feature_std, rankme, uniformity

from .features import HeldOutSample, represent
from .schedule import due
from .single import SingleCallback

__all__ = ["RepresentationMonitor"]


class RepresentationMonitor(SingleCallback):
    """Logs what the geometry of held-out embeddings tells, and warns once, in plain words, when they collapse.

    At each validation, over a sample of at most ``max_samples`` images spread evenly over the batches:
    ``spectrum/rankme`` (effective rank), ``spectrum/alpha`` (decay of the spectrum), ``spectrum/alignment`` (distance
    of two views of an image; needs ``batch["views"]`` with two views of one size), ``spectrum/uniformity`` and
    ``spectrum/std`` (spread on the sphere, 0 to about 1). See :mod:`lit_ssl.evaluation` for formulas and sources.

    Args:
        max_samples: images over all ranks; default 2,048.
        every_n_epochs: act at the validation of every n-th epoch.
        min_std: warn when ``spectrum/std`` is below this. The default 0.05 means an average cosine above 0.9975 between
            the embeddings of different images.
        min_rank: warn when ``spectrum/rankme`` is below this. The default 1.5 means that embeddings lie all but on one
            line.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, max_samples: int = 2048, every_n_epochs: int = 1, min_std: float = 0.05, min_rank: float = 1.5
    ) -> None:
        check_integer("max_samples", max_samples, 2)
        check_integer("every_n_epochs", every_n_epochs)
        check_positive("min_std", min_std, zero=True)
        check_positive("min_rank", min_rank, zero=True)
        self.max_samples, self.every_n_epochs = max_samples, every_n_epochs
        self.min_std, self.min_rank = min_std, min_rank
        self._sample = HeldOutSample(max_samples)
        self._due = self._warned = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._warned = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due = due(trainer, self.every_n_epochs)
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
        if rows <= 0:
            return
        parts = {"clean": represent(pl_module, batch["image"])[:rows]}
        views = batch.get("views") or []
        if len(views) >= 2 and views[0].shape == views[1].shape:
            module: Any = pl_module  # in evaluation mode and without gradient, as all of validation is
            first, second = module.embed(torch.cat([view[:rows] for view in views[:2]])).float().chunk(2)
            parts.update(first=first, second=second)
        self._sample.add(**parts)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._due:
            return
        sample = self._sample.gathered(pl_module, ("clean", "first", "second"))
        if "clean" not in sample or len(sample["clean"]) < 2:
            return
        values = self._measure(sample)
        for name, value in values.items():
            pl_module.log(f"spectrum/{name}", value, sync_dist=True)
        if not self._warned and (problem := self._problem(values)):
            self._warned = True
            rank_zero_warn(f"the representation has collapsed: {problem} (epoch {trainer.current_epoch})")

    @staticmethod
    def _measure(sample: dict[str, Tensor]) -> dict[str, float]:
        z = sample["clean"]
        if not all(bool(torch.isfinite(x).all()) for x in sample.values()):
            return {}
        values = {"rankme": rankme(z), "uniformity": uniformity(z), "std": feature_std(z)}
        alpha = alpha_req(z)
        if alpha == alpha:  # nan where fewer than three eigenvalues are there to fit
            values["alpha"] = alpha
        if "first" in sample and "second" in sample:
            values["alignment"] = alignment(sample["first"], sample["second"])
        return values

    def _problem(self, values: dict[str, float]) -> str | None:
        if not values:
            return "embeddings hold nan or infinite values; lower the learning rate, or look for a division by zero"
        if values["std"] < self.min_std:
            return (
                f"all images get nearly the same embedding (std {values['std']:.4f} is below {self.min_std}); "
                "the usual causes are too high a learning rate, or a loss without negatives or variance term"
            )
        if values["rankme"] < self.min_rank:
            return (
                f"embeddings use {values['rankme']:.2f} dimensions in effect "
                f"(fewer than {self.min_rank}); the usual causes are too strong views or too small a batch"
            )
        return None
