"""What was predicted of masked images, as pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_ssl.losses.reconstruction import normalize_patches

from .patches import PatchGrid, mask_of

__all__ = ["reconstruction_columns"]


def reconstruction_columns(
    clean: Tensor,
    predicted: Tensor,
    keep: Tensor,
    grid: PatchGrid,
    *,
    mean: Tensor,
    std: Tensor,
    normalized: bool,
    everywhere: bool = False,
) -> dict[str, Tensor]:
    """Images, what of them was seen, and what was predicted, side by side.

    Args:
        clean: images (B, C, H, W) in [0, 1].
        predicted: patches (B, L, P) of the images at the data's statistics.
        keep: int64 (B, visible), the patches that were seen.
        grid: of the patches.
        mean, std: (C, 1, 1), the data's statistics.
        normalized: each patch was predicted at mean 0 and variance 1. It then has no brightness and contrast of its
            own: those of the image's patch are used, as in the pictures of the masked autoencoder's authors.
        everywhere: show what was predicted for the seen patches too.

    Returns:
        float32 (B, C, H, W) in [0, 1]: ``input``, ``clean``; ``masked``, its hidden patches gray; ``output``, its
        hidden patches as predicted.
    """
    if normalized:
        _, patch_mean, patch_std = normalize_patches(grid.patchify((clean - mean) / std))
        predicted = predicted * patch_std + patch_mean
    hidden = grid.pixels(mask_of(keep, grid.tokens))
    output = (grid.unpatchify(predicted) * std + mean).clamp(0, 1)
    columns = {
        "input": clean,
        "masked": clean.masked_fill(hidden, 0.5),
        "output": output if everywhere else torch.where(hidden, output, clean),
    }
    return {name: column.float() for name, column in columns.items()}
