"""MCL: masked contrastive learning, where each view of an image shows what the other hides."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_ssl.checks import check_choice, check_integer, check_positive, check_share
from lit_ssl.losses.contrastive import contrastive_options, info_nce
from lit_ssl.losses.cosine import cosine_contrast
from lit_ssl.module import Batch, Losses, SSLModule
from lit_ssl.networks import MLPHead, encode_masked, initialize_vit, is_vit, patch_grid, random_keep, visible_tokens
from lit_ssl.networks.masked import FILLS, Fill
from lit_ssl.random import integers, resolve_seed, step_key
from lit_ssl.views import SimCLRViews, View

__all__ = ["MCL", "position_leak"]


class MCL(SSLModule):
    """Two masked views of an image attract, those of all other images of the global batch repel.

    A ViT drops what is masked before its first block, so that two half views go through it in one forward pass at the
    cost of one full view. Any other backbone sees whole images with masked pixels filled, at the cost of two.

    The masks must not give the pairs away. Where each image has a partition of its own (``complement``), the places
    that one view shows tell which ones the other shows. On all-black images of 16 patches, a ViT that matches 128 pairs
    by position alone brings InfoNCE from log 128 = 4.85 down to 0.2 in 400 steps: nothing is learned about images. Two
    mask modes leak nothing:

    - ``shared``: one partition for the whole batch, alike on all ranks, new at each step; its parts are the two views.
    - ``independent``: two masks for each image, drawn independently; the views overlap by chance.

    Args:
        mask_mode: ``shared``, ``independent`` or ``complement``: a disjoint pair of masks for each image, which warns
            while views are not sparse enough to hide the leak (OCL, Yang et al. 2025, arXiv:2411.09858, takes 5 % of
            the patches for each).
        mask_ratio: share of the patches that are hidden in each view, above 0 and below 1; at least 0.5 where the
            views are disjoint. Default 0.5: complementary halves.
        objective: ``info_nce``, from each view to the other, where each code has its partner and one code of each
            other image as candidates; or ``cosine``, :func:`~lit_ssl.losses.cosine_contrast`.
        temperature, beta, tau_plus, decoupled, kappa: of :func:`~lit_ssl.losses.info_nce`. Default temperature 0.2, as
            in MoCo v3 (Chen et al. 2021, arXiv:2104.02057, section 4), and no options.
        chunk_size: as in :class:`~lit_ssl.SimCLR`.
        projector_layers, projector_hidden, projector_dim: BatchNorm after each hidden layer; 0 layers compare the
            representations themselves, as OCL does. Default 2 layers, 2048-128, as in :class:`~lit_ssl.SimCLR`.
        mask_patch: side in pixels of the squares that hide an image from a backbone that is no ViT; default single
            pixels for ``"mlp"``, about an eighth of the shorter side for others. A ViT has its own patches.
        mask_fill: what a backbone that is no ViT sees there: the visible pixels' ``mean``; ``zero``, the data's mean;
            or ``noise`` of the visible pixels' mean and deviation.
        backbone: default ``vit_small_patch16_224``, whose patches fit themselves to small images. A ViT built by name
            starts with fixed sine-cosine positions and the weights of :class:`~lit_ssl.MAE`.
        views: one view, of which both masks are taken, or two, which get one each. Default
            :class:`~lit_ssl.views.SimCLRViews`, two: masking alone is a weak invariance, since both halves of one
            picture share its colours (linear probe of ExtreMA on ImageNet, Wu et al. 2022, arXiv:2206.04667: 67.1
            without colour augmentation, 73.3 with).
        optimizer, lr, weight_decay, warmup_epochs: default AdamW at 1.5e-4 per 256 images with 0.1, after 40 epochs of
            warm-up: MoCo v3's for ViTs (section 5.1).
        **kwargs: of :class:`~lit_ssl.module.SSLModule`.

    Raises:
        ValueError: an argument outside its range; when the networks are built, a ``mask_patch`` that does not fit, or
            an image of a single patch.
    """

    view_count = range(1, 3)

    def __init__(
        self,
        *,
        mask_mode: Literal["shared", "independent", "complement"] = "shared",
        mask_ratio: float = 0.5,
        objective: Literal["info_nce", "cosine"] = "info_nce",
        temperature: float = 0.2,
        beta: float = 0.0,
        tau_plus: float = 0.0,
        decoupled: bool = False,
        kappa: float | None = None,
        chunk_size: int | None = None,
        projector_layers: int = 2,
        projector_hidden: int = 2048,
        projector_dim: int = 128,
        mask_patch: int | None = None,
        mask_fill: Fill = "mean",
        backbone: str | nn.Module = "vit_small_patch16_224",
        views: View | None = None,
        optimizer: str = "adamw",
        lr: float = 1.5e-4,
        weight_decay: float = 0.1,
        warmup_epochs: float = 40,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone=backbone,
            views=views or SimCLRViews(),
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            warmup_epochs=warmup_epochs,
            **kwargs,
        )
        check_choice("mask_mode", mask_mode, ("shared", "independent", "complement"))
        check_share("mask_ratio", mask_ratio)
        if mask_mode != "independent" and mask_ratio < 0.5:
            raise ValueError(f"mask_ratio must be at least 0.5 for two disjoint views, got {mask_ratio!r}")
        check_choice("objective", objective, ("info_nce", "cosine"))
        self.contrast = contrastive_options(
            temperature=temperature, beta=beta, tau_plus=tau_plus, decoupled=decoupled, chunk_size=chunk_size
        )
        if kappa is not None:
            check_positive("kappa", kappa, zero=True)
        check_integer("projector_layers", projector_layers, 0)
        check_integer("projector_hidden", projector_hidden)
        check_integer("projector_dim", projector_dim)
        check_integer("mask_patch", mask_patch, optional=True)
        check_choice("mask_fill", mask_fill, FILLS)
        self.mask_mode, self.mask_ratio, self.objective = mask_mode, float(mask_ratio), objective
        self.contrast["kappa"] = kappa
        self.projector_sizes = (projector_hidden, projector_dim, projector_layers)
        self.mask_patch, self.mask_fill = mask_patch, mask_fill
        if mask_mode == "complement" and mask_ratio < 0.9:
            warnings.warn(
                "mask_mode='complement' leaks: the places that one view of an image shows tell which ones the other "
                "shows, so pairs can be matched without a look at the images, and little may be learned about them; "
                "mask_mode='shared' or 'independent' does not leak, and few visible patches, far fewer than the square "
                "root of all, leak little",
                stacklevel=2,
            )

    def build_heads(self) -> None:
        assert self.spec is not None
        if is_vit(self.backbone) and self.from_scratch:
            initialize_vit(self.backbone)
        self.grid = patch_grid(self.backbone, self.spec, self.mask_patch)
        self.visible = visible_tokens(self.grid.tokens, self.mask_ratio)
        layers = self.projector_sizes[2]
        self.projector = MLPHead(self.num_features, *self.projector_sizes) if layers else nn.Identity()
        if self.mask_mode == "complement" and (leak := position_leak(self.grid.tokens, self.visible)) > 1:
            warnings.warn(
                f"mask_mode='complement' with {self.visible} of {self.grid.tokens} patches in each view leaks "
                f"{leak:.1f} nats: by position alone, the loss of a batch of B images can fall from log B by as much",
                stacklevel=2,
            )

    def loss(self, batch: Batch) -> Losses:
        views, key = batch["views"], batch["key"]
        x = self.normalize(torch.cat(views))  # (B, C, h, w), or (2B, C, h, w) of two views
        keep = self.visible_patches(key.to(x.device, non_blocking=True))  # (2B, visible): one view shows two parts
        # Views of one image must not be filled with the same noise.
        fill_key = torch.cat([integers(key, f"mcl/fill/{view}", 1 << 53) for view in range(len(views))])
        fill_key = fill_key.to(x.device, non_blocking=True)
        encoded = encode_masked(self.backbone, x, keep, self.grid, fill=self.mask_fill, key=fill_key)
        z1, z2 = self.projector(encoded.pooled).chunk(2)
        if self.objective == "cosine":
            return {"loss": cosine_contrast(z1, z2, chunk_size=self.contrast["chunk_size"])}
        return {"loss": (info_nce(z1, z2, **self.contrast) + info_nce(z2, z1, **self.contrast)) / 2}

    def visible_patches(self, key: Tensor) -> Tensor:
        """The places that the two views of each image show: int64 (2B, visible), all first views before all second.

        Args:
            key: int64 (B,), of the images; chooses their masks, except in ``shared`` mode, where the step does.
        """
        tokens, visible = self.grid.tokens, self.visible
        if self.mask_mode == "independent":
            return torch.cat([random_keep(key, f"mcl/mask/{view}", tokens, visible) for view in range(2)])
        owner = key
        if self.mask_mode == "shared":
            step = self.global_step if self.training else 0  # validation is the same at each step
            owner = step_key(resolve_seed(self.seed), step).to(key.device, non_blocking=True)
        parts = random_keep(owner, "mcl/partition", tokens, 2 * visible, ordered=True).split(visible, 1)
        return torch.cat([part.expand(len(key), -1) for part in parts])


def position_leak(tokens: int, visible: int) -> float:
    """What the places of one view tell about those of the other, in nats, if each image has its own disjoint pair.

    log [C(L, k) / C(L - k, k)]: the other view is one of C(L - k, k) sets of places in place of C(L, k). InfoNCE over B
    candidates cannot fall further below log B than by what a view tells about its partner.

    Args:
        tokens: L, the patches of an image.
        visible: k, those that each view shows, at most half of L.
    """
    return math.log(math.comb(tokens, visible)) - math.log(math.comb(tokens - visible, visible))
