"""Fusion: contrastive learning and masked reconstruction at once, on shared half-masked views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lit_ssl.checks import check_choice, check_flag, check_integer, check_positive, check_share
from lit_ssl.losses.contrastive import contrastive_options, nt_xent
from lit_ssl.losses.reconstruction import masked_mse, normalize_patches
from lit_ssl.module import Batch, Losses, SSLModule
from lit_ssl.networks import MLPHead, PatchGrid, build_patch_decoder, encode_masked, mask_of, patch_grid, random_keep
from lit_ssl.networks.decoders import DecoderKind, NoiseEmbedding, decoder_options
from lit_ssl.networks.masked import FILLS, Encoded, Fill, initialize_vit, is_vit, refuse_idle_parts
from lit_ssl.networks.patches import visible_tokens
from lit_ssl.networks.reconstruction import reconstruction_columns
from lit_ssl.random import integers, normal, uniform
from lit_ssl.spec import ImageSpec
from lit_ssl.views import SimCLRViews, View

__all__ = ["Fusion"]


class Fusion(SSLModule):
    """Two half-masked views of an image: their codes attract, and what is hidden in each is predicted from the rest.

    Source: CAN, Mishra et al. 2022, arXiv:2210.16870. One encoder, no teacher; for normalised views x and their codes,

        L = contrastive_weight NT-Xent + reconstruction_weight MSE(hidden patches of x) + denoising_weight MSE(noise)

    where the encoder sees the visible patches of x + sigma e, with sigma from U[0, noise_max] for each view and e of
    unit variance; the decoder is told sigma and predicts the clean hidden patches and, on the visible ones, the noise.
    A term of weight 0 is not computed and its networks are not built: without ``denoising_weight`` there is no noise,
    with ``contrastive_weight`` alone this is contrastive learning of masked views, with ``reconstruction_weight`` alone
    a masked autoencoder.

    The noise is predicted as e, at unit variance. CAN predicts sigma e, whose mean square is noise_max^2 / 3 = 0.0008:
    beside the other terms that is next to nothing (``noise_target="scaled"``).

    Any backbone will do, and views may be two (the paper's) or one, of which two masks are drawn: with a perceptron,
    single pixels hidden and filled with zeros, that is layer ``method/fusion_mlp``.

    Args:
        contrastive_weight, reconstruction_weight, denoising_weight: at least 0, not all of them 0. Default 0.03,
            0.97 x 0.7 and 0.97 x 0.3 (the paper's).
        mask_ratio: share of the patches that are hidden in each view, between 0 and 1. Default 0.5 (the paper's).
        noise_max: greatest standard deviation of the noise, in units of the normalised pixels. Default 0.05 (the
            paper's).
        noise_target: predict the noise at ``unit`` variance, or ``scaled`` by its sigma as in the paper.
        norm_pix: reconstruct each patch at mean 0 and variance 1, as in :class:`~lit_ssl.MAE`. Patches of a single
            pixel, whose contrast is nil, stay as they are.
        reconstruct_visible: reconstruct all patches, not the hidden ones only.
        sigmoid_output: reconstruct pixels through a sigmoid, so that they stay between 0 and 1; not with ``norm_pix``.
        temperature: of the cosine similarity, positive. Default 0.1 (the paper's).
        beta, tau_plus, decoupled, chunk_size: as in :class:`~lit_ssl.SimCLR`.
        projector_layers, projector_hidden, projector_dim: BatchNorm after each hidden layer. Default 3 layers,
            4096-4096-128.
        decoder, decoder_dim, decoder_depth, decoder_heads, decoder_width, decoder_hidden: as in :class:`~lit_ssl.MAE`.
        mask_patch, mask_fill: of backbones that are no ViT, as in :class:`~lit_ssl.MAE`.
        backbone: default ``vit_small_patch16_224``, whose patches fit themselves to small images.
        backbone_options: default ``{"global_pool": "avg"}`` for that one: a code is the mean of the visible
            patches' tokens; with ``pool_include_prefix`` (layer ``method/fusion``) the class token is among them (CAN).
        views: default :class:`~lit_ssl.views.SimCLRViews`, two.
        optimizer, lr, weight_decay, warmup_epochs: default AdamW at 2.5e-4 per 256 images with 0.05, after 40 epochs of
            warm-up.
        optimizer_options: default betas of 0.9 and 0.95 for AdamW.
        **kwargs: of :class:`~lit_ssl.module.SSLModule`.

    Raises:
        ValueError: an argument outside its range; when the networks are built, a ViT with parts that would not learn,
            a ``mask_patch`` that does not fit, or an image of a single patch.
    """

    view_count = range(1, 3)

    def __init__(
        self,
        *,
        contrastive_weight: float = 0.03,
        reconstruction_weight: float = 0.679,
        denoising_weight: float = 0.291,
        mask_ratio: float = 0.5,
        noise_max: float = 0.05,
        noise_target: Literal["unit", "scaled"] = "unit",
        norm_pix: bool = True,
        reconstruct_visible: bool = False,
        sigmoid_output: bool = False,
        temperature: float = 0.1,
        beta: float = 0.0,
        tau_plus: float = 0.0,
        decoupled: bool = False,
        chunk_size: int | None = None,
        projector_layers: int = 3,
        projector_hidden: int = 4096,
        projector_dim: int = 128,
        decoder: DecoderKind | None = None,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        decoder_width: int = 32,
        decoder_hidden: Sequence[int] = (256,),
        mask_patch: int | None = None,
        mask_fill: Fill = "mean",
        backbone: str | nn.Module = "vit_small_patch16_224",
        backbone_options: dict[str, Any] | None = None,
        views: View | None = None,
        optimizer: str = "adamw",
        lr: float = 2.5e-4,
        weight_decay: float = 0.05,
        optimizer_options: dict[str, Any] | None = None,
        warmup_epochs: float = 40,
        **kwargs: Any,
    ) -> None:
        if backbone_options is None and backbone == "vit_small_patch16_224":
            backbone_options = {"global_pool": "avg"}
        if optimizer_options is None and optimizer == "adamw":
            optimizer_options = {"betas": [0.9, 0.95]}
        super().__init__(
            backbone=backbone,
            backbone_options=backbone_options,
            views=views or SimCLRViews(),
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            optimizer_options=optimizer_options,
            warmup_epochs=warmup_epochs,
            **kwargs,
        )
        self.weights = {
            "contrastive": contrastive_weight,
            "reconstruction": reconstruction_weight,
            "denoising": denoising_weight,
        }
        for term, weight in self.weights.items():
            check_positive(f"{term}_weight", weight, zero=True)
        if not any(self.weights.values()):
            raise ValueError("one of contrastive_weight, reconstruction_weight, denoising_weight must be above 0")
        check_share("mask_ratio", mask_ratio)
        check_positive("noise_max", noise_max)
        check_choice("noise_target", noise_target, ("unit", "scaled"))
        check_flag("norm_pix", norm_pix)
        check_flag("reconstruct_visible", reconstruct_visible)
        check_flag("sigmoid_output", sigmoid_output)
        if sigmoid_output and norm_pix:
            raise ValueError("sigmoid_output needs norm_pix=False: normalised patches are not between 0 and 1")
        check_integer("mask_patch", mask_patch, optional=True)
        check_choice("mask_fill", mask_fill, FILLS)
        for name, value in (("layers", projector_layers), ("hidden", projector_hidden), ("dim", projector_dim)):
            check_integer(f"projector_{name}", value)
        self.contrast = contrastive_options(
            temperature=temperature, beta=beta, tau_plus=tau_plus, decoupled=decoupled, chunk_size=chunk_size
        )
        self.projector_sizes, self.projector_layers = (projector_hidden, projector_dim), projector_layers
        self.decoder_arguments = decoder_options(
            kind=decoder,
            dim=decoder_dim,
            depth=decoder_depth,
            heads=decoder_heads,
            width=decoder_width,
            hidden=decoder_hidden,
        )
        self.mask_ratio, self.mask_patch, self.mask_fill = mask_ratio, mask_patch, mask_fill
        self.noise_max, self.noise_target = noise_max, noise_target
        self.norm_pix, self.reconstruct_visible, self.sigmoid_output = norm_pix, reconstruct_visible, sigmoid_output

    def build_heads(self) -> None:
        assert self.spec is not None
        if is_vit(self.backbone):
            refuse_idle_parts(self.backbone, pooled=bool(self.weights["contrastive"]))
            if self.from_scratch:
                initialize_vit(self.backbone)
        self.grid = patch_grid(self.backbone, self.spec, self.mask_patch)
        self.visible = visible_tokens(self.grid.tokens, self.mask_ratio)
        self.normalized_target = self.norm_pix and self.grid.patch != (1, 1)
        if self.weights["contrastive"]:
            self.projector = MLPHead(self.num_features, *self.projector_sizes, layers=self.projector_layers)
        # Pixels and noise are predicted side by side, as channels of one image: behind a network without tokens the
        # decoder does not know which pixels were hidden.
        predicted = [term for term in ("reconstruction", "denoising") if self.weights[term]]
        if predicted:
            channels = self.spec.channels * len(predicted)
            grid = PatchGrid(self.grid.size, self.grid.patch, channels)
            spec = ImageSpec(self.spec.size, channels)
            self.decoder = build_patch_decoder(self.backbone, spec, grid, **self.decoder_arguments)
        if self.weights["denoising"]:
            self.noise_embedding = NoiseEmbedding(self.decoder.dim)

    # The loss

    def loss(self, batch: Batch) -> Losses:
        views = batch["views"] if len(batch["views"]) == 2 else batch["views"] * 2
        x = self.normalize(torch.cat(views))  # (2B, C, h, w), clean
        key = self.view_keys(batch["key"]).to(x.device, non_blocking=True)
        keep = self.visible_patches(key)
        mask = mask_of(keep, self.grid.tokens)
        noise = self._noise(x, key) if self.weights["denoising"] else None
        noisy = x if noise is None else x + noise.scaled
        encoded = encode_masked(self.backbone, noisy, keep, self.grid, fill=self.mask_fill, key=key)
        terms: Losses = {}
        if self.weights["contrastive"]:
            z1, z2 = self.projector(encoded.pooled).chunk(2)
            terms["contrastive"] = nt_xent(z1, z2, **self.contrast)
        predicted = self._predict(encoded, keep, None if noise is None else noise.level)
        if self.weights["reconstruction"]:
            target = self.grid.patchify(x)
            if self.normalized_target:
                target, _, _ = normalize_patches(target)
            where = torch.ones_like(mask) if self.reconstruct_visible else mask
            terms["reconstruction"] = masked_mse(predicted["reconstruction"], target, where)
        if noise is not None:
            target = self.grid.patchify(noise.unit if self.noise_target == "unit" else noise.scaled)
            terms["denoising"] = masked_mse(predicted["denoising"], target, ~mask)
        total = torch.stack([self.weights[term] * value for term, value in terms.items()]).sum()
        return {"loss": total, **terms}

    def view_keys(self, key: Tensor) -> Tensor:
        """The keys of the two masked views of each image: (B,) to (2B,), first views first."""
        return torch.cat([integers(key, f"fusion/view/{view}", 1 << 53) for view in range(2)])

    def visible_patches(self, key: Tensor) -> Tensor:
        """The places of the patches that are seen: int64 (M, visible), a pure function of each view's key (M,)."""
        return random_keep(key, "mask", self.grid.tokens, self.visible)

    def _noise(self, x: Tensor, key: Tensor) -> Noise:
        """What is added to normalised views ``x`` (M, C, h, w); a pure function of each view's key (M,)."""
        level, unit = uniform(key, "noise/level"), normal(key, "noise", tuple(x.shape[1:]))
        scaled = unit * (level * self.noise_max).view(-1, 1, 1, 1)
        return Noise(unit.to(x), scaled.to(x), level.to(torch.promote_types(x.dtype, torch.float32)))

    def _predict(self, encoded: Encoded, keep: Tensor, level: Tensor | None) -> dict[str, Tensor]:
        """All patches (M, L, P) of what the decoder predicts: ``reconstruction``, ``denoising``, both or neither."""
        terms = [term for term in ("reconstruction", "denoising") if self.weights[term]]
        if not terms:
            return {}
        condition = None if level is None else self.noise_embedding(level)
        out = self.decoder(encoded, keep, condition).unflatten(-1, (-1, len(terms), self.grid.channels))
        predicted = dict(zip(terms, out.unbind(-2), strict=True))  # each (M, L, p * q, C)
        if self.sigmoid_output and "reconstruction" in predicted:
            pixels = predicted["reconstruction"].sigmoid()
            predicted["reconstruction"] = (pixels - self.pixel_mean.flatten()) / self.pixel_std.flatten()
        return {term: patches.flatten(2) for term, patches in predicted.items()}

    def reconstruct(self, image: Tensor, key: Tensor) -> dict[str, Tensor]:
        """What the model sees in masked images without noise, in evaluation mode.

        Args:
            image: uint8 (B, C, H, W).
            key: int64 (B,), which chooses each image's mask.

        Returns:
            float32 (B, C, h, w) in [0, 1]: ``input``, the clean view; ``masked``, its hidden patches gray; ``output``,
            as predicted: the hidden patches alone, or all of them with ``reconstruct_visible``. With ``norm_pix`` a
            prediction has no brightness and contrast of its own: those of the input's patch are used.

        Raises:
            MisconfigurationException: ``reconstruction_weight`` is 0.
        """
        if not self.weights["reconstruction"]:
            raise MisconfigurationException("reconstruct needs a Fusion that reconstructs: reconstruction_weight is 0")
        with self.evaluating():
            clean = self.clean(image)
            x = self.normalize(clean)
            key = key.to(x.device, non_blocking=True)
            keep = self.visible_patches(key)
            level = x.new_zeros(len(x)) if self.weights["denoising"] else None
            encoded = encode_masked(self.backbone, x, keep, self.grid, fill=self.mask_fill, key=key)
            return reconstruction_columns(
                clean,
                self._predict(encoded, keep, level)["reconstruction"],
                keep,
                self.grid,
                mean=self.pixel_mean,
                std=self.pixel_std,
                normalized=self.normalized_target,
                everywhere=self.reconstruct_visible,
            )


class Noise(NamedTuple):
    """Noise of views (M, C, h, w)."""

    unit: Tensor  # (M, C, h, w), of variance 1
    scaled: Tensor  # (M, C, h, w), as it is added
    level: Tensor  # (M,), how much of the most there can be
