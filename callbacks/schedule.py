"""When a callback acts."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

__all__ = ["due", "due_or_last"]


def due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether to act at this validation: never in the sanity check, always in ``validate``, else every n-th epoch."""
    if trainer.sanity_checking:
        return False
    return trainer.state.fn != TrainerFn.FITTING or (trainer.current_epoch + 1) % every_n_epochs == 0


def due_or_last(trainer: Trainer, every_n_epochs: int) -> bool:
    """As :func:`due` says, and always in the last epoch."""
    last = not trainer.sanity_checking and trainer.current_epoch + 1 == trainer.max_epochs
    return last or due(trainer, every_n_epochs)
