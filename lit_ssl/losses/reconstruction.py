"""The error of reconstructed patches."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_ssl.distributed import all_reduce_sum, world_size

__all__ = ["masked_mse", "normalize_patches"]


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


def normalize_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each patch at mean 0 and variance 1: (patches - mean) / std, with the mean and std that undo it.

    The unbiased variance plus 1e-6, so that a patch of one colour stays finite (He et al. 2021, arXiv:2111.06377,
    section 3, and its authors' code).

    Args:
        patches: (B, L, P), P at least 2; computed in float32 or wider.

    Returns:
        The normalised patches (B, L, P), mean (B, L, 1) and std (B, L, 1), at least float32.

    Raises:
        ValueError: patches of a single number, which have no variance.
    """
    if patches.shape[-1] < 2:
        raise ValueError(f"patches must hold at least 2 numbers to be normalised, got {tuple(patches.shape)}")
    patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
    mean = patches.mean(-1, keepdim=True)
    centred = patches - mean
    variance = centred.square().sum(-1, keepdim=True) / (patches.shape[-1] - 1)
    std = (variance + 1e-6).sqrt()
    return centred / std, mean, std
