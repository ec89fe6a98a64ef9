"""Which rows of a batch something happens to, decided on the host."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["chosen"]


def chosen(mask: Tensor, device: torch.device) -> slice | Tensor | None:
    """The rows where a mask on the host is true, as the cheapest thing that indexes them on ``device``.

    Returns:
        None for no row, a slice for adjacent rows, else int64 indices.
    """
    index = mask.nonzero()[:, 0]
    if len(index) == 0:
        return None
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index):
        return slice(first, last + 1)
    return index.to(device, non_blocking=True)
