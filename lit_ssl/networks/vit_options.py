"""Two options of a ViT that timm does not have, and recipes do: fixed positions, and a frozen patch embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lit_ssl.checks import check_flag

from .masked import is_vit, sincos_positions

__all__ = ["apply_vit_options", "take_vit_options"]

NAMES = ("fixed_positions", "frozen_patch_embedding")


def take_vit_options(options: dict[str, Any]) -> dict[str, bool]:
    """Remove these options from a backbone's, and return them.

    Raises:
        ValueError: one that is neither true nor false.
    """
    taken = {name: options.pop(name, False) for name in NAMES}
    for name, value in taken.items():
        check_flag(name, value)
    return taken


@torch.no_grad()
def apply_vit_options(
    module: nn.Module, name: str, *, fixed_positions: bool, frozen_patch_embedding: bool, pretrained: bool
) -> None:
    """Apply them to a backbone that was built, in place.

    Args:
        module: the backbone, and ``name`` what it is called in an error.
        fixed_positions: 2-D sine-cosine positions that are not learned, in place of learned ones (MoCo v3, Chen et al.
            2021, arXiv:2104.02057, and FLIP, Li et al. 2022, arXiv:2212.00794, in their authors' code).
        frozen_patch_embedding: the first layer, which cuts and projects the patches, is not trained (MoCo v3, section
            4.2); it starts Xavier-uniform with a bias of zero, as in its authors' code. Draws from torch's global
            generator.
        pretrained: weights that were loaded are frozen as they are, and positions that belong to them stay.

    Raises:
        ValueError: the backbone is no ViT, or has no positions or pretrained ones, which would be thrown away.
    """
    for option, wanted in (("fixed_positions", fixed_positions), ("frozen_patch_embedding", frozen_patch_embedding)):
        if wanted and not is_vit(module):
            raise ValueError(f"{option}=True works for timm's VisionTransformer, not for {name!r}")
    if not is_vit(module):
        return
    if fixed_positions:
        if pretrained or module.pos_embed is None:
            why = "pretrained=True, whose positions are learned" if pretrained else "a ViT without position embedding"
            raise ValueError(f"fixed_positions=True does not go with {why}")
        sincos_positions(module)
    if frozen_patch_embedding:
        projection = module.patch_embed.proj
        if not pretrained:
            nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        projection.requires_grad_(False)
