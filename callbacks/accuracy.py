"""Accuracy over labelled rows, without asking the device which rows those are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["LabelledAccuracy"]


class LabelledAccuracy(Metric):
    """Share of rows predicted right among those with a label of 0 or more; nan where there are none.

    torchmetrics' own accuracy drops ignored rows by boolean indexing, which makes the host wait for the device.
    """

    full_state_update = False
    higher_is_better = True
    correct: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("correct", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, label: Tensor) -> None:
        """Adds rows: both int64 (B,)."""
        known = label >= 0
        self.correct += ((predicted == label) & known).sum()
        self.total += known.sum()

    def add(self, correct: Tensor, total: Tensor) -> None:
        """Adds counts, as a checkpoint holds them."""
        self.correct += correct.to(self.correct.device)
        self.total += total.to(self.total.device)
        self._update_count += 1  # else torchmetrics warns that nothing was counted

    def compute(self) -> Tensor:
        return self.correct / self.total
