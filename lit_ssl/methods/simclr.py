"""SimCLR: a simple framework for contrastive learning of visual representations."""

from __future__ import annotations

from typing import Any

import torch

from lit_ssl.checks import check_flag, check_integer
from lit_ssl.losses.contrastive import contrastive_options, nt_xent
from lit_ssl.module import Batch, Losses, SSLModule
from lit_ssl.networks import MLPHead
from lit_ssl.views import SimCLRViews, View

__all__ = ["SimCLR"]


class SimCLR(SSLModule):
    """Two views of an image attract; all other images of the global batch repel.

    Source: Chen et al. 2020, arXiv:2002.05709, Algorithm 1.

    Args:
        temperature: of the cosine similarity, positive. Default 0.2: the published CIFAR-10 recipe of solo-learn.
        projector_hidden: width of the projector's hidden layer. Default 2048 (section 4.2 uses the backbone's width).
        projector_dim: length of a projection. Default 128 (section 4.2).
        projector_layers: number of linear layers, BatchNorm and ReLU between them. Default 2 (section 2.1); 3 in the
            authors' later code (Chen et al. 2020, arXiv:2006.10029).
        projector_last_norm: BatchNorm behind the last layer, too, as in the authors' code, without its learned scale.
            Default False (section 2.1).
        beta: weight on hard negatives, 0 for none (Robinson et al. 2021, arXiv:2010.04592; 1 was best on STL-10).
        tau_plus: assumed share of false negatives, in [0, 1) (Chuang et al. 2020, arXiv:2007.00224; 0.1 on STL-10).
        decoupled: leave the positive out of the denominator (Yeh et al. 2021, arXiv:2110.06848).
        chunk_size: rows of the similarity matrix held at once; None holds all.
        views: default :class:`~lit_ssl.views.SimCLRViews` (appendix A).
        optimizer, lr, weight_decay: default LARS at 0.3 per 256 images with 1e-6 (section 2.2).
        **kwargs: of :class:`~lit_ssl.module.SSLModule`.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.2,
        projector_hidden: int = 2048,
        projector_dim: int = 128,
        projector_layers: int = 2,
        projector_last_norm: bool = False,
        beta: float = 0.0,
        tau_plus: float = 0.0,
        decoupled: bool = False,
        chunk_size: int | None = None,
        views: View | None = None,
        optimizer: str = "lars",
        lr: float = 0.3,
        weight_decay: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(views=views or SimCLRViews(), optimizer=optimizer, lr=lr, weight_decay=weight_decay, **kwargs)
        check_integer("projector_hidden", projector_hidden)
        check_integer("projector_dim", projector_dim)
        check_integer("projector_layers", projector_layers)
        check_flag("projector_last_norm", projector_last_norm)
        self.projector_sizes = (projector_hidden, projector_dim)
        self.projector_options: dict[str, Any] = {"layers": projector_layers, "last_norm": projector_last_norm}
        self.contrast = contrastive_options(
            temperature=temperature, beta=beta, tau_plus=tau_plus, decoupled=decoupled, chunk_size=chunk_size
        )

    def build_heads(self) -> None:
        self.projector = MLPHead(self.num_features, *self.projector_sizes, **self.projector_options)

    def loss(self, batch: Batch) -> Losses:
        views = torch.cat(batch["views"])  # (2B, C, h, w)
        z1, z2 = self.projector(self.backbone(self.normalize(views))).chunk(2)
        return {"loss": nt_xent(z1, z2, **self.contrast)}
