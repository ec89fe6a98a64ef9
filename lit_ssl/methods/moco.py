"""MoCo: momentum contrast, the recipes of its second and third version."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_ssl.checks import check_choice, check_flag, check_integer, check_number, check_positive
from lit_ssl.distributed import gather
from lit_ssl.losses.contrastive import contrastive_options, info_nce
from lit_ssl.module import Batch, Losses, SSLModule
from lit_ssl.networks import MLPHead
from lit_ssl.networks.follower import Follower
from lit_ssl.views import MoCoViews, View

__all__ = ["MoCo"]


class MoCo(SSLModule):
    """A query finds its key, which a slowly moving copy of the encoder made, among many other keys.

    The defaults are version 2 (Chen et al. 2020, arXiv:2003.04297): one pair of views, negatives from a queue of past
    keys. Version 3 (Chen et al. 2021, arXiv:2104.02057) has no queue, a predictor and a symmetric loss:
    ``MoCo(queue_size=0, predictor=True, symmetric=True, ...)``, or the layer ``method/moco_v3``. Version 2 shuffles
    BatchNorm across GPUs so that a key cannot be told by its batch; here the norms' statistics are those of the global
    batch, which serves the same end.

    Args:
        temperature: of the cosine similarity, positive. Default 0.2 (v2, table 1; v3, section 4).
        queue_size: number of past keys that serve as negatives, those of all ranks. Default 65536 (v1, section 4).
            0 takes the other keys of the global batch instead.
        momentum: of the key encoder, in [0, 1]. Default 0.999 (v1, section 4.1).
        momentum_schedule: ``constant``, or ``cosine`` from ``momentum`` to 1 over the run (v3's code).
        predictor: a second head on the query side (v3, section 3).
        symmetric: let each view be query and key once (v3, algorithm 1); the loss is the mean of the two.
        loss_scale: multiplies the loss. Default 1. Version 3 has 2 x temperature for each of two terms that are added
            up (its code), which is 4 x temperature here. It matters for what an optimizer does not adapt: under LARS,
            biases and the affine part of norms.
        predictor_last_norm: BatchNorm behind the predictor, as v3 has it for a ViT; not for a ResNet (its code).
            Default True.
        projector_layers, projector_hidden, projector_dim: default 2 layers of 2048 to 128 without norm (v2, section 3);
            with ``predictor`` the head has BatchNorm after each layer, as in v3.
        beta, tau_plus, decoupled, chunk_size: as in :class:`~lit_ssl.SimCLR`.
        views: default :class:`~lit_ssl.views.MoCoViews` (v2).
        optimizer, lr, weight_decay: default SGD at 0.03 per 256 images with 1e-4 (v1, section 4); no warm-up.
        **kwargs: of :class:`~lit_ssl.module.SSLModule`.

    Raises:
        ValueError: an argument outside its range.
    """

    queue: Tensor
    queue_position: Tensor

    def __init__(
        self,
        *,
        temperature: float = 0.2,
        queue_size: int = 65536,
        momentum: float = 0.999,
        momentum_schedule: Literal["constant", "cosine"] = "constant",
        predictor: bool = False,
        symmetric: bool = False,
        loss_scale: float = 1.0,
        predictor_last_norm: bool = True,
        projector_layers: int = 2,
        projector_hidden: int = 2048,
        projector_dim: int = 128,
        beta: float = 0.0,
        tau_plus: float = 0.0,
        decoupled: bool = False,
        chunk_size: int | None = None,
        views: View | None = None,
        optimizer: str = "sgd",
        lr: float = 0.03,
        weight_decay: float = 1e-4,
        warmup_epochs: float = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            views=views or MoCoViews(),
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            warmup_epochs=warmup_epochs,
            **kwargs,
        )
        check_integer("queue_size", queue_size, 0)
        check_number("momentum", momentum)
        check_choice("momentum_schedule", momentum_schedule, ("constant", "cosine"))
        for name, value in (("layers", projector_layers), ("hidden", projector_hidden), ("dim", projector_dim)):
            check_integer(f"projector_{name}", value)
        check_positive("loss_scale", loss_scale)
        check_flag("predictor_last_norm", predictor_last_norm)
        self.queue_size, self.momentum, self.momentum_schedule = queue_size, momentum, momentum_schedule
        self.loss_scale, self.predictor_last_norm = loss_scale, predictor_last_norm
        self.use_predictor, self.symmetric = predictor, symmetric
        self.projector_layers, self.projector_hidden, self.projector_dim = (
            projector_layers,
            projector_hidden,
            projector_dim,
        )
        self.contrast = contrastive_options(
            temperature=temperature, beta=beta, tau_plus=tau_plus, decoupled=decoupled, chunk_size=chunk_size
        )
        self._ddp_params_and_buffers_to_ignore = ["queue", "queue_position", "follower.masters"]  # alike on all ranks

    def build_heads(self) -> None:
        norm, hidden, dim = self.use_predictor, self.projector_hidden, self.projector_dim
        self.projector = MLPHead(
            self.num_features, hidden, dim, layers=self.projector_layers, norm=norm, last_norm=norm
        )
        last = self.predictor_last_norm
        self.predictor = MLPHead(dim, hidden, dim, last_norm=last, bias=last) if norm else nn.Identity()
        # The key encoder starts as a copy of the query encoder and only ever follows it.
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.follower = Follower(
            (self.key_backbone, self.key_projector),
            (self.backbone, self.projector),
            self.momentum,
            self.momentum_schedule,
        )
        if self.queue_size:
            self.register_buffer("queue", F.normalize(torch.randn(self.queue_size, dim)))
            self.register_buffer("queue_position", torch.zeros((), dtype=torch.int64))

    def loss(self, batch: Batch) -> Losses:
        views = [self.normalize(view) for view in batch["views"]]
        pairs = [(0, 1), (1, 0)] if self.symmetric else [(0, 1)]
        queries = {q: self.predictor(self.projector(self.backbone(views[q]))) for q, _ in pairs}
        with torch.no_grad():
            keys = {k: self.key_projector(self.key_backbone(views[k])) for _, k in pairs}
        queue = self.queue if self.queue_size else None
        terms = [info_nce(queries[q], keys[k], queue=queue, **self.contrast) for q, k in pairs]
        self._keys = list(keys.values())
        return {"loss": self.loss_scale * torch.stack(terms).mean()}

    def on_after_backward(self) -> None:
        """Enqueue the keys of all ranks: after the loss, else each positive would be among its own negatives."""
        if self.queue_size:
            keys = F.normalize(torch.stack(self._keys, dim=1), dim=-1).to(self.queue)  # (B, views, D)
            # All of one view, then all of the next, on any number of processes.
            keys = gather(keys).transpose(0, 1).flatten(0, 1)[-self.queue_size :]
            slots = (self.queue_position + torch.arange(len(keys), device=keys.device)) % self.queue_size
            self.queue.index_copy_(0, slots, keys)
            self.queue_position.add_(len(keys)).remainder_(self.queue_size)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The key encoder follows right behind the optimizer, so that a checkpoint holds both after the same step."""
        super().optimizer_step(*args, **kwargs)
        self.follower.follow(self.steps_seen + 1, self.steps_planned)
