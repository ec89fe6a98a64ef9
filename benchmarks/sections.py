"""Where the time of a training step of this package goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

__all__ = ["Sections"]

OTHER = "Lightning and the rest"


class Sections(Callback):
    """Seconds of each part of the steps behind the first; where one part calls another, only that one's clock runs.

    Args:
        module: an ``SSLModule``.
        data: the ``ImageDataModule`` it is trained on.

    Attributes:
        spent: seconds by part.
    """

    def __init__(self, module: Any, data: Any) -> None:
        self.module, self.data = module, data
        self.spent: dict[str, float] = {}
        self.part, self.since, self.steps = OTHER, 0.0, 0

    def switch(self, part: str) -> str:
        now, before = time.perf_counter(), self.part
        self.spent[before] = self.spent.get(before, 0.0) + now - self.since
        self.part, self.since = part, now
        return before

    def inside(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            outer = self.switch(part)
            try:
                return call(*arguments, **options)
            finally:
                self.switch(outer)

        return timed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap what a step calls. The backbone's backward pass starts where the gradient of its output is known."""

        def backward(gradient: Tensor) -> None:
            self.switch("backbone")

        def forward(x: Tensor) -> Tensor:
            features = embed(x)
            features.register_hook(backward)
            return features

        def step(closure: Callable[[], Any]) -> Any:
            return update(self.inside(OTHER, closure))

        module, optimizer, embed = self.module, trainer.optimizers[0], self.module.backbone.forward
        update = optimizer.step
        module.backbone.forward = self.inside("backbone", forward)
        for owner, name, part in (
            (module, "training_step", "loss and projector"),
            (module, "backward", "loss and projector"),
            (module, "log_dict", "logging"),
            (module, "optimizer_zero_grad", "optimizer"),
            (self.data, "on_before_batch_transfer", "views"),
            (self.data, "on_after_batch_transfer", "views"),
            (self.data.train_set, "__getitems__", "loader"),
        ):
            setattr(owner, name, self.inside(part, getattr(owner, name)))
        optimizer.step = self.inside("optimizer", step)  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.steps += 1
        self.switch(self.part)
        if self.steps == 1:
            self.spent.clear()
