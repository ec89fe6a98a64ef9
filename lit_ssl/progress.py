"""How far a run is, by the samples that it has seen: its batch may have been changed, knowingly, where it went on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["run_length", "steps_ahead"]


def run_length(trainer: Any, ahead: float) -> float:
    """Optimizer steps of the whole run, as if all had been made with the batch of now; infinite where it has no end.

    Args:
        trainer: with its loaders.
        ahead: steps that the run is further than it has counted, see :func:`steps_ahead`.
    """
    total = trainer.estimated_stepping_batches
    if not ahead or trainer.max_steps < 0:
        return total
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    steps = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else math.inf
    by_epochs = steps * epochs if epochs is not None and epochs > 0 else math.inf
    return min(trainer.max_steps + ahead, by_epochs)  # max_steps counts those of other batches, too


def steps_ahead(before: Any, now: Mapping[str, Any], checkpoint: dict[str, Any]) -> float:
    """Steps of the batch of now that a resumed run is further than it has counted; negative: less far.

    They are 0 unless the batch was changed, by this resume or by one before. The place in the epoch is moved too,
    in the checkpoint that Lightning is about to restore, so that what is left of the epoch is what was not seen, up
    to one batch.

    Args:
        before: the fingerprint in the checkpoint, if it has one.
        now: that of the run which goes on.
        checkpoint: changed in place where the batch of a step is another one.
    """
    ahead = float(checkpoint.get("ahead", 0.0))
    if not isinstance(before, Mapping):
        return ahead
    old, old_steps, new, new_steps = (
        value if isinstance(value, int) else 0
        for values in (before, now)
        for value in (values.get("step_batch"), values.get("accumulate_grad_batches"))
    )
    if min(old, old_steps, new, new_steps) < 1:
        return ahead
    if old != new:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        ready = progress["ready"]  # the others may be one behind, as Lightning expects
        progress.update({name: int(ready * old / new) - (ready - value) for name, value in progress.items()})
    if old * old_steps == new * new_steps:
        return ahead  # to the bit, however often a run goes on
    step = int(checkpoint.get("global_step", 0))
    return (step + ahead) * old * old_steps / (new * new_steps) - step
