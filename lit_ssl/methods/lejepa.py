"""LeJEPA: views agree, and embeddings are an isotropic Gaussian; no negatives, no teacher, no stop-gradient."""

from __future__ import annotations

from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from lit_ssl.checks import check_integer, check_number
from lit_ssl.distributed import global_count, world_size
from lit_ssl.losses.sigreg import check_sigreg, sigreg
from lit_ssl.module import Batch, Losses, SSLModule
from lit_ssl.networks import MLPHead
from lit_ssl.random import resolve_seed, step_key
from lit_ssl.views import MultiCropViews, View

__all__ = ["LeJEPA"]


class LeJEPA(SSLModule):
    """All views of an image meet at the mean of its global views; SIGReg keeps all images from meeting at one point.

    Source: Balestriero & LeCun 2025, arXiv:2511.08544, section 5.1:

        L = (1 - w) mean_{v,n,d} (z_vnd - centre_nd)^2 + w SIGReg(z),   centre_n = mean of the global views of image n

    where z are projections, and gradients flow through the centre. A healthy run's ``train/sigreg`` settles a little
    above 1, its expectation for Gaussian samples; at a fixed w its pull grows with the global batch.

    Views may differ in size, as the paper's 2 global and 6 local ones do (layer ``method/lejepa_multicrop``), where the
    backbone takes several sizes: convolutional networks do, timm's ViTs with
    ``backbone_options={"dynamic_img_size": True}``. The default is the paper's two global views, for any backbone.

    Args:
        sigreg_weight: w, in [0, 1]. Default 0.05 (the paper's; the authors' minimal example takes 0.02).
        global_views: how many of the views, from the first, make the centre. Default 2 (the paper's).
        num_directions, knots, t_max: of :func:`~lit_ssl.losses.sigreg`; new directions at each step. Default 1024
            (recommended there), 17 and 3.
        projector_layers, projector_hidden, projector_dim: BatchNorm after each hidden layer. Default 3 layers,
            2048-2048-128 (the authors' ``MINIMAL.md``; the paper finds 64 to 1024 alike).
        views: default :class:`~lit_ssl.views.MultiCropViews` with the authors' probabilities and no local views.
        optimizer, lr, weight_decay, lr_scaling, warmup_epochs: default AdamW at 5e-4 with 5e-4, the authors' choice for
            ResNets (for ViTs 0.05), whatever the batch size, after one epoch of warm-up.
        **kwargs: of :class:`~lit_ssl.module.SSLModule`.

    Raises:
        ValueError: an argument outside its range; in the first step, fewer views than ``global_views``, or views of a
            size that the backbone does not take.
    """

    view_count = range(2, 101)

    def __init__(
        self,
        *,
        sigreg_weight: float = 0.05,
        global_views: int = 2,
        num_directions: int = 1024,
        knots: int = 17,
        t_max: float = 3.0,
        projector_layers: int = 3,
        projector_hidden: int = 2048,
        projector_dim: int = 128,
        views: View | None = None,
        optimizer: str = "adamw",
        lr: float = 5e-4,
        weight_decay: float = 5e-4,
        lr_scaling: Literal["linear", "sqrt", "none"] = "none",
        warmup_epochs: float = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            views=views or MultiCropViews(local_views=0, global_scale=(0.3, 1.0), blur=(0.5,) * 3, solarize=(0.2,) * 3),
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            lr_scaling=lr_scaling,
            warmup_epochs=warmup_epochs,
            **kwargs,
        )
        self.sigreg_weight = check_number("sigreg_weight", sigreg_weight)
        check_integer("global_views", global_views)
        check_sigreg(num_directions, knots, t_max)
        for name, value in (("layers", projector_layers), ("hidden", projector_hidden), ("dim", projector_dim)):
            check_integer(f"projector_{name}", value)
        self.global_views = global_views
        self.projector_sizes = (projector_hidden, projector_dim, projector_layers)
        self.sketch: dict[str, Any] = {"num_directions": num_directions, "knots": knots, "t_max": t_max}

    def build_heads(self) -> None:
        self.projector = MLPHead(self.num_features, *self.projector_sizes)

    def loss(self, batch: Batch) -> Losses:
        views = batch["views"]
        if len(views) < self.global_views:
            raise ValueError(f"global_views must be at most the number of views, {len(views)}, got {self.global_views}")
        # Views of one size go through the backbone together, and all through the projector.
        features = [self._features(torch.cat(list(group))) for _, group in groupby(views, lambda view: view.shape[2:])]
        z = self.projector(torch.cat(features)).unflatten(0, (len(views), len(views[0])))  # (V, B, D)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        distance = (z - z[: self.global_views].mean(0)).square().mean((0, 2))  # (B,)
        invariance = distance.sum() * (world_size() / max(global_count(len(distance)), 1))
        step = self.global_step if self.training else 0
        gaussianity = sigreg(z, key=step_key(resolve_seed(self.seed), step), **self.sketch)
        w = self.sigreg_weight
        return {"loss": (1 - w) * invariance + w * gaussianity, "invariance": invariance, "sigreg": gaussianity}

    def _features(self, views: Tensor) -> Tensor:
        try:
            return self.backbone(self.normalize(views))
        except (AssertionError, RuntimeError, ValueError) as error:
            assert self.spec is not None
            (height, width), (own_height, own_width) = views.shape[2:], self.spec.size
            if (height, width) == self.spec.size or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise ValueError(
                f"the backbone, built for {own_height}x{own_width} pixels, does not take views of {height}x{width} "
                f"({type(error).__name__}: {error}). A ViT of timm does with backbone_options={{'dynamic_img_size': "
                "True}} if its patches divide them (choose a local_size); for a backbone of one size give local_views=0"
            ) from error
