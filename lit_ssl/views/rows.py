"""Which rows of a batch something happens to, decided on the host."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["chosen"]


def chosen(mask: list[bool], device: torch.device) -> slice | Tensor | None:
    """The rows where a mask is true, as the cheapest thing that indexes them on ``device``.

    Returns:
        None for no row, a slice for adjacent rows, else int64 indices.
    """
    count = mask.count(True)
    if count == 0:
        return None
    first = mask.index(True)
    if all(mask[first : first + count]):
        return slice(first, first + count)
    index = [row for row, happens in enumerate(mask) if happens]
    return torch.tensor(index, device="cpu").to(device, non_blocking=True)
