"""What the trainings of this folder share: a trainer, and a budget in time."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Callback, Trainer

__all__ = ["CLOCKS", "WallClock", "bare_trainer"]

CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}
"""Clocks by name, in seconds: the time that goes by, and the time that this process computes, all threads together."""


class WallClock(Callback):
    """Ends training after a time, and lets the learning rate warm up and fall over it.

    Args:
        seconds: from the first step on.
        warmup: share of the time over which the learning rate rises; it falls on a cosine over the rest.
        clock: one of ``CLOCKS``. With ``cpu`` a run of one thread takes as many steps on a busy machine as on an idle
            one; a run of n threads has n such seconds in each that goes by.

    Attributes:
        steps: optimizer steps taken so far.
    """

    def __init__(self, seconds: float, warmup: float = 0.05, clock: str = "wall") -> None:
        self.seconds, self.warmup, self.steps = seconds, warmup, 0
        self.now = CLOCKS[clock]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start = self.now()
        scheduler = trainer.lr_scheduler_configs[0].scheduler
        scheduler.lr_lambdas = [lambda step: self.factor()] * len(scheduler.lr_lambdas)  # type: ignore[union-attr]

    def factor(self) -> float:
        done = min(1.0, (self.now() - self.start) / self.seconds)
        if done < self.warmup:
            return max(done / self.warmup, 0.01)
        return (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup))) / 2

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.steps = trainer.global_step
        if self.now() - self.start >= self.seconds:
            trainer.should_stop = True


def bare_trainer(max_epochs: int = 100_000, accelerator: str = "cpu", **options: Any) -> Trainer:
    """A trainer on one device that neither validates nor leaves anything on disk or screen.

    It is bare also where stable-pretraining is installed, which adds its callbacks to every trainer there.
    """
    trainer: Any = Trainer(
        max_epochs=max_epochs,
        accelerator=accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **options,
    )
    trainer.callbacks = [c for c in trainer.callbacks if not type(c).__module__.startswith("stable_pretraining")]
    return trainer
