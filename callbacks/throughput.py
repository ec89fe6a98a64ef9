"""Images a second."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from .single import SingleCallback

__all__ = ["Throughput"]


class Throughput(SingleCallback):
    """Logs ``time/images_per_s``: images of all ranks a second of wall time, at each of the trainer's logging steps.

    Averaged since the logging step before, data loading included, validation and other pauses between epochs not. Only
    host clocks are read, nothing waits for the device: over an interval of many steps the device cannot run ahead far.
    """

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._images, self._began = 0, perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch["image"])
        if trainer._logger_connector.should_update_logs:
            seconds = max(perf_counter() - self._began, 1e-9)
            rate = self._images * trainer.world_size / seconds
            pl_module.log("time/images_per_s", rate, on_step=True, on_epoch=False, batch_size=1)
            self._restart()
