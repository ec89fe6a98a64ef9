"""Encoding what a mask leaves of an image: a ViT sees the visible tokens only, any other network sees filled pixels."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeGuard

import torch
import torch.utils.checkpoint
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lit_ssl.checks import check_integer
from lit_ssl.random import normal
from lit_ssl.spec import ImageSpec

from .patches import PatchGrid, even_patch, mask_of
from .small import MLP

__all__ = [
    "FILLS",
    "Encoded",
    "encode_masked",
    "encode_visible",
    "initialize_vit",
    "is_vit",
    "patch_grid",
    "refuse_idle_parts",
    "sincos_positions",
    "sincos_table",
    "xavier_linears",
]

Fill = Literal["mean", "zero", "noise"]
FILLS = ("mean", "zero", "noise")


class Encoded(NamedTuple):
    """What an encoder made of masked images."""

    pooled: Tensor  # (M, D)
    tokens: Tensor | None  # (M, prefix + visible, D) of a ViT; None of any other network


def is_vit(backbone: nn.Module) -> TypeGuard[VisionTransformer]:
    """Whether masked tokens can be dropped: true for timm's ``VisionTransformer`` and DeiT, with patches of pixels.

    A hybrid is none: the network that makes its patches sees the whole image. Neither is a subclass with a forward
    pass of its own, which dropping would not follow. Both take filled images, as any other network.
    """
    return (
        isinstance(backbone, VisionTransformer)
        and isinstance(backbone.patch_embed, PatchEmbed)
        and type(backbone).forward is VisionTransformer.forward
        and type(backbone).forward_features is VisionTransformer.forward_features
    )


def refuse_idle_parts(vit: VisionTransformer, *, pooled: bool) -> None:
    """Refuse a ViT with parts that would get no gradient: they would never learn, and DDP would wait for them.

    Args:
        vit: whose encoding of masked images a method learns through.
        pooled: the method looks at the pooled features; otherwise at the tokens alone.

    Raises:
        ValueError: names the part and how to build the ViT without it.
    """
    cures = {"head": "num_classes=0"} if pooled else {"head": "num_classes=0", "attn_pool": "global_pool='avg'"}
    for name, cure in cures.items():
        part = getattr(vit, name, None)
        if part is not None and any(parameter.requires_grad for parameter in part.parameters()):
            raise ValueError(
                f"the backbone's {name} would get no gradient: build it with {cure} (by name: in backbone_options)"
            )


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
        height, width = backbone.patch_embed.patch_size
        if mask_patch is not None and (height, width) != (mask_patch, mask_patch):
            raise ValueError(f"mask_patch must be None for this ViT of {height}x{width} patches, got {mask_patch}")
        return PatchGrid(spec.size, (height, width), spec.channels)
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
        encode = getattr(backbone, "encode_visible", None)  # that of a sharded ViT gathers its parameters
        return encode_visible(backbone, x, keep) if encode is None else encode(x, keep)
    return Encoded(backbone(_filled(x, grid.pixels(mask_of(keep, grid.tokens)), fill, key)), None)


def encode_visible(vit: VisionTransformer, x: Tensor, keep: Tensor) -> Encoded:
    """The visible tokens of a ViT alone; see :func:`encode_masked`."""
    tokens = vit._pos_embed(vit.patch_embed(x))  # positions before masking; the embedding is shared by all views
    prefix, patches = tokens.tensor_split([vit.num_prefix_tokens], 1)
    views = len(keep) // len(x) if len(x) else 1
    place = keep.reshape(views, len(x), keep.shape[1], 1).expand(-1, -1, -1, patches.shape[-1])
    visible = patches.expand(views, *patches.shape).gather(2, place).flatten(0, 1)
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
    wide = torch.promote_types(x.dtype, torch.float32)
    visible = (~hidden).to(wide)
    count = visible.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (x * visible).sum((2, 3), keepdim=True) / count
    if fill == "mean":
        return torch.where(hidden, mean.to(x), x)
    assert key is not None, "noise is drawn from keys"
    std = (((x - mean) * visible).square().sum((2, 3), keepdim=True) / count).sqrt()
    key = key.to(x.device, non_blocking=True)
    noise = torch.cat([normal(key, f"mask/fill/{view}", tuple(x.shape[1:])) for view in range(views)])
    return torch.where(hidden, (mean + std * noise.to(wide)).to(x), x)


def sincos_table(rows: int, columns: int, dim: int) -> Tensor:
    """The fixed 2-D sine-cosine positions of a grid: float32 (rows * columns, dim).

    Half of the numbers tell the column, half the row, each as sines and then cosines of dim / 4 frequencies (He et al.
    2021, arXiv:2111.06377, appendix A.1; in the order of its authors' weights).

    Raises:
        ValueError: ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, got {dim}")
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)  # (column, row) of each patch
    angle = place.unsqueeze(-1) * frequency
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1).float()


@torch.no_grad()
def sincos_positions(vit: VisionTransformer) -> None:
    """Write the fixed 2-D sine-cosine positions into a ViT and freeze them; prefix tokens have zeros."""
    if vit.pos_embed is None:
        return
    rows, columns = vit.patch_embed.grid_size
    prefix = vit.pos_embed.shape[1] - rows * columns
    vit.pos_embed[:, :prefix] = 0
    vit.pos_embed[:, prefix:] = sincos_table(rows, columns, vit.pos_embed.shape[-1])
    vit.pos_embed.requires_grad_(False)


@torch.no_grad()
def initialize_vit(vit: VisionTransformer) -> None:
    """First weights of a ViT that learns from masked images, in place of timm's.

    Sine-cosine positions, frozen; Xavier-uniform Linear layers and patch embedding with biases of zero; prefix tokens
    from N(0, 0.02^2) (He et al. 2021, arXiv:2111.06377, appendix A.1, and its authors' code). Draws from torch's
    global generator.
    """
    sincos_positions(vit)
    xavier_linears(vit)
    weight = vit.patch_embed.proj.weight
    nn.init.xavier_uniform_(weight.view(len(weight), -1))
    for name in ("cls_token", "reg_token", "dist_token"):
        if (token := getattr(vit, name, None)) is not None:
            nn.init.normal_(token, std=0.02)


@torch.no_grad()
def xavier_linears(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every Linear layer in ``module``."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
