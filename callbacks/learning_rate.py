"""The learning rate, under one name."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from .single import SingleCallback

__all__ = ["LearningRate"]


class LearningRate(SingleCallback):
    """Logs ``lr`` at each of the trainer's logging steps: the rate that step was taken with.

    Lightning's LearningRateMonitor names one metric per parameter group; the groups of this package differ in weight
    decay only, so the first group's rate is everyone's.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Before the step: afterwards the scheduler has already moved on to the next one's.
        if trainer.optimizers and trainer._logger_connector.should_update_logs:
            rate = float(trainer.optimizers[0].param_groups[0]["lr"])
            pl_module.log("lr", rate, on_step=True, on_epoch=False, batch_size=1)
