"""What the host decides about the rows of a batch, and how their device comes to know of it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["chosen", "sent"]


def sent(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``, without the host waiting for what a GPU has yet to do.

    CUDA may copy out of other than pinned memory only when all work that was queued before is done.
    """
    pinned = x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x
    return pinned.to(device, non_blocking=True)


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
    return sent(torch.tensor(index, device="cpu"), device)
