"""A callback of which a run has one."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["SingleCallback"]


class SingleCallback(Callback):
    """Base of callbacks that write under fixed names, so that a second one in a run would mix its values with these.

    Raises:
        ValueError: another callback of this class, and of the same ``name`` where the class has one, is in the trainer.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        own: Any = self
        alike = [
            callback
            for callback in cast(Any, trainer).callbacks
            if type(callback) is type(self) and getattr(callback, "name", None) == getattr(own, "name", None)
        ]
        if len(alike) > 1:
            kind = type(self).__name__
            named = "give each a name of its own, as in {kind}(name='other')"
            remedy = named.format(kind=kind) if hasattr(self, "name") else "leave all but one out"
            raise ValueError(f"{len(alike)} {kind} of one run would write under the same names: {remedy}")
