"""What losses over rows of two matrices share: their shapes, the sphere, hard negatives and bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["log_sum_negatives", "pair", "sum_rows", "unit"]


def pair(name_a: str, a: Tensor, name_b: str, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors, of one shape (B, D); raises ValueError otherwise."""
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            f"{name_a} and {name_b} must both be (B, D) of one shape, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return a, b


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float32 or wider."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def sum_rows(fn: Callable[..., Tensor], *rows: Tensor, chunk_size: int | None) -> Tensor:
    """The sum of ``fn`` over all rows: at once, or block by block, each block's work redone in the backward pass."""
    if chunk_size is None or len(rows[0]) <= chunk_size:
        return fn(*rows).sum()

    def block(*part: Tensor) -> Tensor:
        return fn(*part).sum()

    parts = zip(*(r.split(chunk_size) for r in rows), strict=True)
    return torch.stack([checkpoint(block, *p, use_reentrant=False, preserve_rng_state=False) for p in parts]).sum()


def log_sum_negatives(logits: Tensor, negatives: int | Tensor, beta: float) -> Tensor:
    """log sum_j w_j e^l_j for each row, with w_j = e^(beta l_j) / mean_k e^(beta l_k): (R,).

    Hard negatives count for more (Robinson et al. 2021, arXiv:2010.04592); ``beta`` 0 weighs all alike.

    Args:
        logits: (R, M), -inf where a column is no negative of the row.
        negatives: how many columns are, for all rows or (R,), at least 1.
        beta: concentration, at least 0.
    """
    if not beta:
        return torch.logsumexp(logits, 1)
    count = negatives.log() if isinstance(negatives, Tensor) else math.log(negatives)
    return torch.logsumexp((1 + beta) * logits, 1) - torch.logsumexp(beta * logits, 1) + count
