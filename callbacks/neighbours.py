"""Nearest-neighbour accuracy during a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_ssl.checks import check_integer, check_positive
from lit_ssl.evaluation import knn_predict
from lit_ssl.random import resolve_seed

from .accuracy import LabelledAccuracy
from .features import encode, represent
from .schedule import due
from .single import SingleCallback

__all__ = ["OnlineKNN"]


class OnlineKNN(SingleCallback):
    """Classifies held-out images by their nearest labelled training images, as the encoder now sees both.

    At each validation the bank is computed anew from clean images of the data module's labelled set: never from
    augmented views, never from an earlier encoder. Logs ``knn/val_acc``, over all ranks.

    Args:
        k: neighbours that vote; default 20 (200 is Wu et al.'s for ImageNet).
        temperature: a vote weighs exp(cosine / temperature); default 0.07 (Wu et al. 2018, arXiv:1805.01978).
        max_bank: at most this many labelled images, chosen by the seed and the same at each validation; it bounds both
            time and memory (``max_bank`` x D x 4 bytes). Default 10,000.
        every_n_epochs: act at the validation of every n-th epoch.
        seed: of the choice; None takes that of ``seed_everything``, or 0.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        k: int = 20,
        temperature: float = 0.07,
        max_bank: int = 10_000,
        every_n_epochs: int = 1,
        seed: int | None = None,
    ) -> None:
        check_integer("k", k)
        check_positive("temperature", temperature)
        check_integer("max_bank", max_bank)
        check_integer("every_n_epochs", every_n_epochs)
        if seed is not None:
            resolve_seed(seed)
        self.k, self.temperature, self.max_bank = k, temperature, max_bank
        self.every_n_epochs, self.seed = every_n_epochs, seed
        self._bank: tuple[Tensor, Tensor] | None = None
        self._accuracy = LabelledAccuracy()
        self._said = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bank = None
        if not due(trainer, self.every_n_epochs):
            return
        datamodule: Any = getattr(trainer, "datamodule", None)
        labelled = getattr(datamodule, "labelled_set", None)
        if labelled is None:
            if not self._said:
                why = "a plain loader has no labelled set" if datamodule is None else "the data has no labels"
                rank_zero_info(f"OnlineKNN is off: {why}")
            self._said = True
            return
        module: Any = pl_module
        x, y = encode(
            datamodule,
            labelled,
            {"bank": module.represent},
            device=pl_module.device,
            max_rows=self.max_bank,
            seed=resolve_seed(self.seed),
        )
        known = y >= 0
        if bool(known.any()):
            self._bank = x["bank"][known], y[known]
            self._classes = max(int(y.max()) + 1, datamodule.num_classes or 0)
        self._accuracy.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._bank is None or dataloader_idx:
            return
        x = represent(pl_module, batch["image"])
        bank, labels = self._bank
        predicted = knn_predict(bank, labels, x, classes=self._classes, k=self.k, temperature=self.temperature)
        self._accuracy.update(predicted, batch["label"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bank is None:
            return
        self._bank = None
        accuracy = self._accuracy.compute()
        if not bool(accuracy.isnan()):
            pl_module.log("knn/val_acc", accuracy, prog_bar=True, sync_dist=True)
