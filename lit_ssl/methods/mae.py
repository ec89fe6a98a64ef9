"""MAE: the masked autoencoder, and masked input modelling for networks that are no ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lit_ssl.checks import check_choice, check_flag, check_integer, check_share
from lit_ssl.losses.reconstruction import masked_mse, normalize_patches
from lit_ssl.module import Batch, Losses, SSLModule
from lit_ssl.networks import (
    build_patch_decoder,
    encode_masked,
    initialize_vit,
    is_vit,
    mask_of,
    patch_grid,
    random_keep,
    visible_tokens,
)
from lit_ssl.networks.decoders import DecoderKind, decoder_options
from lit_ssl.networks.masked import FILLS, Fill, refuse_idle_parts
from lit_ssl.networks.reconstruction import reconstruction_columns
from lit_ssl.views import MAEViews, View

__all__ = ["MAE"]


class MAE(SSLModule):
    """Most of an image is hidden; what is hidden is predicted from the rest.

    Source: He et al. 2021, arXiv:2111.06377. The encoder sees the visible patches only, a narrow decoder all places;
    the loss is the mean squared error of the hidden patches. Any ViT of timm's ``VisionTransformer`` family will do,
    with any patch size, number of channels and shape of image; ``backbone.state_dict()`` loads into plain timm. Built
    by name it starts from the paper's weights: fixed sine-cosine positions and Xavier-uniform layers.

    Any other backbone sees the whole image with hidden pixels filled, and a convolutional decoder (a perceptron behind
    ``"mlp"``) predicts them from its features: masked input modelling, on squares of ``mask_patch`` pixels.

    Args:
        mask_ratio: share of the patches that are hidden, between 0 and 1; at least one is hidden and one seen. Default
            0.75 (section 4.1, figure 5).
        norm_pix: predict each patch at mean 0 and variance 1 (section 4.1, table 1d; the released models have it).
            Patches of a single pixel, whose contrast is nil, stay as they are.
        decoder_dim, decoder_depth, decoder_heads: of the ViT's decoder. Default 512, 8, 16 (section 4.1 and the code).
        decoder: behind a backbone that is no ViT: ``conv``, or ``mlp``, which on a CPU takes a fraction of the time.
            Default ``mlp`` behind ``"mlp"``, else ``conv``.
        decoder_width: channels, at full resolution, of the decoder ``conv``. Default 32.
        decoder_hidden: widths of the hidden layers of the decoder ``mlp``. Default one of 256.
        mask_patch: side in pixels of the squares that hide an image from a backbone that is no ViT; default single
            pixels for ``"mlp"``, about an eighth of the shorter side for others. A ViT has its own patches.
        mask_fill: what a backbone that is no ViT sees there: the visible pixels' ``mean``; ``zero``, the data's mean;
            or ``noise`` of the visible pixels' mean and deviation.
        backbone: default ``vit_small_patch16_224``, whose patches fit themselves to small images.
        views: default :class:`~lit_ssl.views.MAEViews` (appendix A.1).
        optimizer, lr, weight_decay, warmup_epochs: default AdamW at 1.5e-4 per 256 images with 0.05, after 40 epochs of
            warm-up (table 8).
        optimizer_options: default betas of 0.9 and 0.95 for AdamW (table 8).
        **kwargs: of :class:`~lit_ssl.module.SSLModule`.

    Raises:
        ValueError: an argument outside its range; when the networks are built, a ViT with attention pooling or a
            classifier, a ``mask_patch`` that does not fit, or an image of a single patch.
    """

    view_count = 1

    def __init__(
        self,
        *,
        mask_ratio: float = 0.75,
        norm_pix: bool = True,
        decoder: DecoderKind | None = None,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        decoder_width: int = 32,
        decoder_hidden: Sequence[int] = (256,),
        mask_patch: int | None = None,
        mask_fill: Fill = "mean",
        backbone: str | nn.Module = "vit_small_patch16_224",
        views: View | None = None,
        optimizer: str = "adamw",
        lr: float = 1.5e-4,
        weight_decay: float = 0.05,
        optimizer_options: dict[str, Any] | None = None,
        warmup_epochs: float = 40,
        **kwargs: Any,
    ) -> None:
        if optimizer_options is None and optimizer == "adamw":
            optimizer_options = {"betas": [0.9, 0.95]}
        super().__init__(
            backbone=backbone,
            views=views or MAEViews(),
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            optimizer_options=optimizer_options,
            warmup_epochs=warmup_epochs,
            **kwargs,
        )
        check_share("mask_ratio", mask_ratio)
        check_flag("norm_pix", norm_pix)
        check_integer("mask_patch", mask_patch, optional=True)
        check_choice("mask_fill", mask_fill, FILLS)
        self.decoder_arguments = decoder_options(
            kind=decoder,
            dim=decoder_dim,
            depth=decoder_depth,
            heads=decoder_heads,
            width=decoder_width,
            hidden=decoder_hidden,
        )
        self.mask_ratio, self.norm_pix, self.mask_patch, self.mask_fill = mask_ratio, norm_pix, mask_patch, mask_fill

    def build_heads(self) -> None:
        assert self.spec is not None
        if is_vit(self.backbone):
            refuse_idle_parts(self.backbone, pooled=False)
            if self.from_scratch:
                initialize_vit(self.backbone)
        self.grid = patch_grid(self.backbone, self.spec, self.mask_patch)
        self.visible = visible_tokens(self.grid.tokens, self.mask_ratio)
        self.normalized_target = self.norm_pix and self.grid.patch != (1, 1)
        self.decoder = build_patch_decoder(self.backbone, self.spec, self.grid, **self.decoder_arguments)

    def loss(self, batch: Batch) -> Losses:
        x = self.normalize(batch["views"][0])  # (B, C, H, W)
        key = batch["key"].to(x.device, non_blocking=True)
        keep = self.visible_patches(key)
        target = self.grid.patchify(x)
        if self.normalized_target:
            target, _, _ = normalize_patches(target)
        return {"loss": masked_mse(self._predict(x, keep, key), target, mask_of(keep, self.grid.tokens))}

    def visible_patches(self, key: Tensor) -> Tensor:
        """The places of the patches that are seen: int64 (B, visible), a pure function of each image's key (B,)."""
        return random_keep(key, "mask", self.grid.tokens, self.visible)

    def _predict(self, x: Tensor, keep: Tensor, key: Tensor) -> Tensor:
        """All patches (B, L, P) from those at ``keep`` of normalised images."""
        return self.decoder(encode_masked(self.backbone, x, keep, self.grid, fill=self.mask_fill, key=key), keep)

    def reconstruct(self, image: Tensor, key: Tensor) -> dict[str, Tensor]:
        """What the model sees in masked images, in evaluation mode.

        Args:
            image: uint8 (B, C, H, W).
            key: int64 (B,), which chooses each image's mask.

        Returns:
            float32 (B, C, h, w) in [0, 1]: ``input``, the clean view; ``masked``, its hidden patches gray; ``output``,
            its hidden patches as predicted. With ``norm_pix`` a prediction has no brightness and contrast of its own:
            those of the input's patch are used, as in the authors' pictures.
        """
        with self.evaluating():
            clean = self.clean(image)
            x = self.normalize(clean)
            key = key.to(x.device, non_blocking=True)
            keep = self.visible_patches(key)
            return reconstruction_columns(
                clean,
                self._predict(x, keep, key),
                keep,
                self.grid,
                mean=self.pixel_mean,
                std=self.pixel_std,
                normalized=self.normalized_target,
            )
