"""CLIP: images and captions in one space, by softmax or sigmoid; masked images or a within-image term if asked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_ssl.checks import check_choice, check_flag, check_integer, check_number, check_positive
from lit_ssl.losses import clip_loss, nt_xent, siglip_loss
from lit_ssl.module import Batch, Losses, SSLModule
from lit_ssl.networks import MLPHead, encode_masked, is_vit, patch_grid, random_keep
from lit_ssl.networks.text import TextTransformer, build_text_encoder
from lit_ssl.views import MAEViews, SLIPViews, View

__all__ = ["CLIP"]

MAX_SCALE = 100.0


class CLIP(SSLModule):
    """An image and its caption attract; the other captions and images of the global batch repel.

    Source: Radford et al. 2021 (CLIP), arXiv:2103.00020; ``loss="siglip"`` is Zhai et al. 2023, arXiv:2303.15343;
    ``mask_ratio`` is FLIP (Li et al. 2022, arXiv:2212.00794) and ``simclr_weight`` SLIP (Mu et al. 2021,
    arXiv:2112.12750). The layers ``method/clip``, ``siglip``, ``flip`` and ``slip`` hold the recipe of each paper.

    Batches bring ``text``, a list of one caption an image.

    Args:
        loss: ``clip``, a softmax over the global batch, or ``siglip``, a yes or no for each pair (better where batches
            are small).
        backbone: the image tower, see :class:`~lit_ssl.module.SSLModule`. Default ViT-S/16, whose patches shrink with
            small images.
        text_encoder: ``transformer`` (:class:`~lit_ssl.networks.text.TextTransformer`, trained from the start), or
            ``transformers:NAME`` or ``sentence-transformers:NAME``, a model of those libraries.
        text_options: of the transformer: ``width``, ``depth``, ``heads``, ``pool``, ``causal``.
        text_pretrained: load the weights of a ``transformers:`` model; a sentence encoder always comes with its own.
        tokenizer: ``bytes``, or the path of a ``tokenizer.json`` (the extra ``text``); checkpoints keep its content.
        context_length: most tokens a caption. Default 256 bytes, about CLIP's 77 byte pairs.
        embedding_dim: of the shared space. Default 512 (table 20).
        logit_scale: what cosine similarities are multiplied by at first; learned, and kept from 1 to 100 with ``clip``.
            Default 1 / 0.07 with ``clip`` (section 2.5) and 10 with ``siglip`` (section 3.2).
        logit_bias: added to each logit at first, with ``siglip``; learned. Default -10 (section 3.2).
        mask_duplicates: leave pairs of equal captions out of the negatives. The papers do not.
        beta: weight on hard negatives, with ``clip``; 0 for none (Radenovic et al. 2023, arXiv:2301.02280).
        mask_ratio: share of an image's patches that training drops, in [0, 1); needs a ViT. Evaluation sees all. FLIP's
            is 0.5.
        simclr_weight: of a SimCLR loss between two more views of each image; 0 for none. SLIP's is 1.
        simclr_temperature, simclr_hidden, simclr_dim: of that loss and of its three-layer projector. Default 0.1, 4096
            and 256 (SLIP's code).
        chunk_size: rows of the similarity matrices held at once; None holds all.
        views: default a crop of at least 0.9 of the image, neither flipped nor recoloured (open_clip's), and with
            ``simclr_weight`` :class:`~lit_ssl.views.SLIPViews`. One view an image, and three with ``simclr_weight``.
        optimizer, lr, weight_decay, optimizer_options, lr_scaling, warmup_epochs: default AdamW at 5e-4 whatever the
            batch, with 0.2, betas (0.9, 0.98) and eps 1e-6 (tables 18 and 20), one epoch of warm-up; betas (0.9, 0.95)
            with ``siglip`` (its section 4).
        **kwargs: of :class:`~lit_ssl.module.SSLModule`.

    Raises:
        ValueError: an argument outside its range, or one that needs another ``loss``, ``backbone`` or
            ``text_encoder``.
        ImportError: a library that is not installed; names the extra that brings it.
    """

    def __init__(
        self,
        *,
        loss: Literal["clip", "siglip"] = "clip",
        backbone: str | nn.Module = "vit_small_patch16_224",
        text_encoder: str = "transformer",
        text_options: dict[str, Any] | None = None,
        text_pretrained: bool = True,
        tokenizer: str = "bytes",
        context_length: int = 256,
        embedding_dim: int = 512,
        logit_scale: float | None = None,
        logit_bias: float = -10.0,
        mask_duplicates: bool = True,
        beta: float = 0.0,
        mask_ratio: float = 0.0,
        simclr_weight: float = 0.0,
        simclr_temperature: float = 0.1,
        simclr_hidden: int = 4096,
        simclr_dim: int = 256,
        chunk_size: int | None = None,
        views: View | None = None,
        optimizer: str = "adamw",
        lr: float = 5e-4,
        weight_decay: float = 0.2,
        optimizer_options: dict[str, Any] | None = None,
        lr_scaling: Literal["linear", "sqrt", "none"] = "none",
        warmup_epochs: float = 1,
        **kwargs: Any,
    ) -> None:
        default_views = SLIPViews() if simclr_weight else MAEViews(scale=(0.9, 1.0), flip=0.0)
        if optimizer_options is None and optimizer == "adamw":
            optimizer_options = {"betas": [0.9, 0.98], "eps": 1e-6} if loss == "clip" else {"betas": [0.9, 0.95]}
        super().__init__(
            backbone=backbone,
            views=views or default_views,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            optimizer_options=optimizer_options,
            lr_scaling=lr_scaling,
            warmup_epochs=warmup_epochs,
            **kwargs,
        )
        check_choice("loss", loss, ("clip", "siglip"))
        check_flag("mask_duplicates", mask_duplicates)
        check_flag("text_pretrained", text_pretrained)
        check_integer("embedding_dim", embedding_dim)
        check_integer("context_length", context_length, 3)
        check_integer("chunk_size", chunk_size, optional=True)
        check_positive("beta", beta, zero=True)
        if beta and loss != "clip":
            raise ValueError(f"beta must be 0 with loss={loss!r}, got {beta}: a sigmoid weighs each pair by itself")
        if not 0 <= check_number("mask_ratio", mask_ratio) < 1:
            raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio}")
        check_positive("simclr_weight", simclr_weight, zero=True)
        check_positive("simclr_temperature", simclr_temperature)
        check_integer("simclr_hidden", simclr_hidden)
        check_integer("simclr_dim", simclr_dim)
        if logit_scale is None:
            logit_scale = 1 / 0.07 if loss == "clip" else 10.0
        check_positive("logit_scale", logit_scale)
        if loss == "clip":
            check_number("logit_scale", logit_scale, 1.0, MAX_SCALE)
        check_number("logit_bias", logit_bias, -math.inf, math.inf)
        self.objective, self.mask_duplicates, self.beta, self.chunk_size = loss, mask_duplicates, beta, chunk_size
        self.first_logits = (logit_scale, logit_bias)
        self.embedding_dim, self.mask_ratio = embedding_dim, mask_ratio
        self.simclr_weight, self.simclr_temperature = simclr_weight, simclr_temperature
        self.projector_sizes = (simclr_hidden, simclr_dim)
        self.view_count = 3 if simclr_weight else 1
        self.text_arguments: dict[str, Any] = {
            "name": text_encoder,
            "pretrained": text_pretrained,
            "tokenizer": tokenizer,
            "context_length": context_length,
            "options": text_options,
        }

    def build_heads(self) -> None:
        assert self.spec is not None
        if self.mask_ratio and not is_vit(self.backbone):
            name = type(self.backbone).__name__
            raise ValueError(f"mask_ratio must be 0 for a backbone that is no ViT ({name}), got {self.mask_ratio}")
        self.grid = patch_grid(self.backbone, self.spec) if self.mask_ratio else None
        self.text = build_text_encoder(**self.text_arguments)
        self.image_projection = _projection(self.num_features, self.embedding_dim)
        self.text_projection = _projection(self.text.num_features, self.embedding_dim)
        scale, bias = self.first_logits
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        if self.objective == "siglip":
            self.logit_bias = nn.Parameter(torch.tensor(float(bias)))
        if self.simclr_weight:
            self.projector = MLPHead(self.num_features, *self.projector_sizes, layers=3)

    def loss(self, batch: Batch) -> Losses:
        view, *others = batch["views"]
        captions = _captions(batch)
        image = self.image_projection(self._encode_image(self.normalize(view), batch["key"]))
        text = self.text_projection(self._encode_text(captions))
        logits: dict[str, Any] = {
            "logit_scale": self.logit_scale.exp(),
            "duplicates": _numbers(captions).to(image.device, non_blocking=True) if self.mask_duplicates else None,
            "chunk_size": self.chunk_size,
        }
        if self.objective == "clip":
            total = clip_loss(image, text, beta=self.beta, **logits)
        else:
            total = siglip_loss(image, text, logit_bias=self.logit_bias, **logits)
        terms = {"logit_scale": logits["logit_scale"].to(total.dtype)}
        if self.simclr_weight:
            z1, z2 = self.projector(self.backbone(self.normalize(torch.cat(others)))).chunk(2)
            simclr = nt_xent(z1, z2, temperature=self.simclr_temperature, chunk_size=self.chunk_size)
            terms |= {"image_text": total, "simclr": simclr}
            total = total + self.simclr_weight * simclr
        return {"loss": total, **terms}

    def _encode_image(self, x: Tensor, key: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to features (B, D); in training of a random part of their patches."""
        if self.grid is None or not self.training:
            return self.backbone(x)
        tokens = self.grid.tokens
        key = key.to(x.device, non_blocking=True)
        keep = random_keep(key, "clip/keep", tokens, max(1, round(tokens * (1 - self.mask_ratio))))
        return encode_masked(self.backbone, x, keep, self.grid).pooled

    def _encode_text(self, captions: Sequence[str]) -> Tensor:
        """B captions to features (B, D); tokens are made here, on the host, and sent without waiting for the device."""
        if not captions:  # a rank without rows, which not every tokenizer takes
            return torch.zeros(0, self.text.num_features, device=self.device, dtype=self.logit_scale.dtype)
        tokens = self.text.tokenize(captions)
        return self.text({name: value.to(self.device, non_blocking=True) for name, value in tokens.items()})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Keep CLIP's scale from 1 to 100 (section 2.5), right behind the optimizer: clipped in the loss, a parameter
        beyond the bound would have no gradient and never return."""
        super().optimizer_step(*args, **kwargs)
        if self.objective == "clip":
            with torch.no_grad():
                self.logit_scale.clamp_(0.0, math.log(MAX_SCALE))

    def represent_image(self, image: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) to the shared space: float32 (B, E) of unit length, in evaluation mode."""
        with self.evaluating():
            return F.normalize(self.image_projection(self.embed(self.clean(image))).float(), dim=-1)

    def represent_text(self, text: Sequence[str]) -> Tensor:
        """B captions to the shared space: float32 (B, E) of unit length, in evaluation mode.

        Raises:
            TypeError: one string in place of several.
        """
        if isinstance(text, str):
            raise TypeError(f"text must be a list of captions, got one string: {text!r}")
        with self.evaluating():
            return F.normalize(self.text_projection(self._encode_text(text)).float(), dim=-1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What all methods store, and the content of a tokenizer file.

        A named text model's weights are in the checkpoint, too; loading reads its configuration and tokenizer again.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] |= {"text_pretrained": False}
        if isinstance(tower := getattr(self, "text", None), TextTransformer):
            checkpoint["hyper_parameters"] |= {"tokenizer": tower.tokenizer.source}


def _projection(features: int, dim: int) -> nn.Linear:
    linear = nn.Linear(features, dim, bias=False)
    nn.init.normal_(linear.weight, std=features**-0.5)  # as in CLIP's public code
    return linear


def _captions(batch: Batch) -> list[str]:
    text = batch.get("text")
    if text is None:
        raise ValueError(
            "CLIP learns from captions, and the batch has no 'text': use a data module of images and captions "
            "(CaptionedShapes, ImageText), or a loader of dicts with 'image' and 'text', one str an image"
        )
    if len(text) != len(batch["image"]) or not all(isinstance(caption, str) for caption in text):
        raise ValueError(f"text must be a list of one str an image ({len(batch['image'])}), got {type(text).__name__}")
    return list(text)


def _numbers(captions: Sequence[str]) -> Tensor:
    """A number for each caption, equal for equal ones, on every rank and in every run: int64 (B,)."""
    digests = (hashlib.blake2b(caption.encode("utf-8", "replace"), digest_size=8).digest() for caption in captions)
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64)
