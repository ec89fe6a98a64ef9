"""The error of reconstructed patches."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_ssl.distributed import all_reduce_sum, world_size

__all__ = ["masked_mse"]


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of the masked patches (He et al. 2021, arXiv:2111.06377, section 3).

    The mean runs over the numbers of a patch, then over all masked patches of the global batch.

    Args:
        pred, target: (B, L, P) of this rank: L patches of P numbers, of any floating dtype; computed in float32 or
            wider. No gradient flows into ``target``.
        mask: (B, L), bool or weights of at least 0; nonzero where the error counts.

    Returns:
        A scalar, at least float32: this rank's share of the global mean, times the world size. 0 where nothing is
        masked on any rank.

    Raises:
        ValueError: shapes that do not agree.
    """
    if pred.ndim != 3 or pred.shape != target.shape or mask.shape != pred.shape[:2]:
        raise ValueError(
            "pred and target must be (B, L, P) and mask (B, L), "
            f"got {tuple(pred.shape)}, {tuple(target.shape)} and {tuple(mask.shape)}"
        )
    with torch.autocast(pred.device.type, enabled=False):
        dtype = torch.promote_types(pred.dtype, torch.float32)
        error = (pred.to(dtype) - target.detach().to(dtype)).square().mean(-1)
        weight = mask.to(dtype)
        count = all_reduce_sum(weight.sum())
        return (error * weight).sum() * world_size() / count.clamp(min=torch.finfo(dtype).tiny)
