"""Encoding what a mask leaves of an image: a ViT sees the visible tokens only, any other network sees filled pixels."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.utils.checkpoint
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lit_ssl.checks import check_integer
from lit_ssl.random import normal
from lit_ssl.spec import ImageSpec

from .patches import PatchGrid, even_patch, mask_of
from .small import MLP

__all__ = ["FILLS", "Encoded", "encode_masked", "is_vit", "patch_grid", "sincos_positions", "sincos_table"]

Fill = Literal["mean", "zero", "noise"]
FILLS = ("mean", "zero", "noise")


class Encoded(NamedTuple):
    """What an encoder made of masked images."""

    pooled: Tensor  # (M, D)
    tokens: Tensor | None  # (M, prefix + visible, D) of a ViT; None of any other network


def is_vit(backbone: nn.Module) -> bool:
    """Whether masked tokens can be dropped: true for timm's ``VisionTransformer`` and its subclasses."""
    return isinstance(backbone, VisionTransformer)


def patch_grid(backbone: nn.Module, spec: ImageSpec, mask_patch: int | None = None) -> PatchGrid:
    """The patches that masks are made of.

    Args:
        backbone: a ViT brings its own patches.
        spec: of the images.
        mask_patch: side in pixels of the squares that hide an image from any other network; None is single pixels for
            :class:`~lit_ssl.networks.small.MLP`, and about an eighth of the shorter side otherwise.

    Raises:
        ValueError: ``mask_patch`` does not divide the image, or is given for a ViT with other patches.
    """
    check_integer("mask_patch", mask_patch, optional=True)
    if is_vit(backbone):
        patch = tuple(backbone.patch_embed.patch_size)  # type: ignore[union-attr, arg-type]
        if mask_patch is not None and patch != (mask_patch, mask_patch):
            raise ValueError(f"mask_patch must be None or the ViT's own patch size {patch}, got {mask_patch}")
        return PatchGrid(spec.size, patch, spec.channels)
    if mask_patch is None:
        mask_patch = 1 if isinstance(backbone, MLP) else even_patch(spec) or 1
    if spec.height % mask_patch or spec.width % mask_patch:
        raise ValueError(f"mask_patch must divide the image of {spec.height}x{spec.width} pixels, got {mask_patch}")
    return PatchGrid(spec.size, (mask_patch, mask_patch), spec.channels)


def encode_masked(
    backbone: nn.Module, x: Tensor, keep: Tensor, grid: PatchGrid, *, fill: Fill = "mean", key: Tensor | None = None
) -> Encoded:
    """Encode the visible part of images, one or several masked views of each in one forward pass.

    Args:
        backbone: images (B, C, H, W) to features (B, D).
        x: normalised images (B, C, H, W).
        keep: int64 (M, visible), M a multiple of B: row b, B + b, ... are the visible patches of views of image b.
        grid: of :func:`patch_grid`.
        fill: what stands where a network that is no ViT may not look: the ``mean`` of the image's visible pixels, by
            channel; ``zero``, the data set's mean after normalisation; or ``noise`` of the visible pixels' mean and
            standard deviation. Erased patches alone shift a convolution's statistics.
        key: int64 (B,), of the noise; needed for ``fill="noise"`` alone.
    """
    keep = keep.to(x.device, non_blocking=True)
    if is_vit(backbone):
        return _encode_visible(backbone, x, keep)  # type: ignore[arg-type]
    return Encoded(backbone(_filled(x, grid.pixels(mask_of(keep, grid.tokens)), fill, key)), None)


def _encode_visible(vit: VisionTransformer, x: Tensor, keep: Tensor) -> Encoded:
    tokens = vit._pos_embed(vit.patch_embed(x))  # positions before masking; the embedding is shared by all views
    prefix, patches = tokens.tensor_split([vit.num_prefix_tokens], 1)
    views = len(keep) // len(x) if len(x) else 1
    visible = patches.repeat(views, 1, 1).gather(1, keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
    tokens = vit.norm_pre(torch.cat([prefix.repeat(views, 1, 1), visible], 1))
    if vit.grad_checkpointing and vit.training:
        for block in vit.blocks:
            tokens = torch.utils.checkpoint.checkpoint(block, tokens, use_reentrant=False)
    else:
        tokens = vit.blocks(tokens)
    tokens = vit.norm(tokens)
    # With average pooling timm normalises after pooling: a decoder needs its tokens normalised all the same.
    return Encoded(vit.forward_head(tokens, pre_logits=True), vit.fc_norm(tokens))


def _filled(x: Tensor, hidden: Tensor, fill: Fill, key: Tensor | None) -> Tensor:
    """``x`` (B, C, H, W), once for each view, with the pixels of ``hidden`` bool (M, 1, H, W) replaced."""
    views = len(hidden) // len(x) if len(x) else 1
    x = x.repeat(views, 1, 1, 1)
    if fill == "zero":
        return x.masked_fill(hidden, 0.0)
    visible = (~hidden).to(x)
    count = visible.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (x * visible).sum((2, 3), keepdim=True) / count
    if fill == "mean":
        return torch.where(hidden, mean, x)
    assert key is not None, "noise is drawn from keys"
    std = (((x - mean) * visible).square().sum((2, 3), keepdim=True) / count).sqrt()
    key = key.to(x.device)
    noise = torch.cat([normal(key, f"mask/fill/{view}", tuple(x.shape[1:])) for view in range(views)])
    return torch.where(hidden, mean + std * noise.to(x), x)


def sincos_table(rows: int, columns: int, dim: int) -> Tensor:
    """The fixed 2-D sine-cosine positions of a grid: float32 (rows * columns, dim).

    Half of the numbers tell the row, half the column (He et al. 2021, arXiv:2111.06377, appendix A.1).

    Raises:
        ValueError: ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, got {dim}")
    return build_sincos2d_pos_embed([rows, columns], dim)


@torch.no_grad()
def sincos_positions(vit: VisionTransformer) -> None:
    """Write the fixed 2-D sine-cosine positions into a ViT and freeze them; prefix tokens have zeros."""
    if vit.pos_embed is None:
        return
    rows, columns = vit.patch_embed.grid_size  # type: ignore[misc]
    prefix = vit.pos_embed.shape[1] - rows * columns
    vit.pos_embed[:, :prefix] = 0
    vit.pos_embed[:, prefix:] = sincos_table(rows, columns, vit.pos_embed.shape[-1])
    vit.pos_embed.requires_grad_(False)
