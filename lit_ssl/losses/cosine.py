"""Pull pairs together and push all others apart by their cosines alone: no temperature, no softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_ssl.checks import check_integer
from lit_ssl.distributed import gather, rank, row_counts, world_size

from .rows import pair, sum_rows, unit

__all__ = ["cosine_contrast"]


def cosine_contrast(z1: Tensor, z2: Tensor, *, chunk_size: int | None = None) -> Tensor:
    """Cosine distance of pairs, plus what cosine is left between codes of different samples.

        mean_i [1 - cos(z1_i, z2_i)]  +  mean_{i != j} max(0, cos(z1_i, z2_j))

    with means over the N rows, and the N (N - 1) ordered pairs of rows, of the global batch: the terms of
    ``torch.nn.CosineEmbeddingLoss`` at margin 0 over all pairs, each kind of pair averaged by itself. Symmetric in its
    arguments. 0 where pairs agree and different samples are orthogonal or further apart; at least 1, in expectation,
    where codes do not tell which rows belong together, as when all are alike.

    Args:
        z1, z2: (B, D) of this rank, row i of each from one sample; of any floating dtype; normalised here; computed in
            float32 or wider.
        chunk_size: rows whose cosines are held at once, exact all the same; None holds all of them.

    Returns:
        A scalar, at least float32: this rank's share of the global value, times the world size.

    Raises:
        ValueError: shapes that differ or are not (B, D), or a ``chunk_size`` below 1.
    """
    check_integer("chunk_size", chunk_size, optional=True)
    z1, z2 = pair("z1", z1, "z2", z2)
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = unit(z1), unit(z2)
        counts = row_counts(len(z1))
        n, start = sum(counts), sum(counts[: rank()])
        candidates = gather(z2, counts)  # (n, D)
        own = start + torch.arange(len(z1), device=z1.device)

        def cosines(z1: Tensor, own: Tensor, candidates: Tensor) -> Tensor:
            return (z1 @ candidates.T).clamp(min=0).scatter(1, own, 0.0)

        pull = (1 - (z1 * z2).sum(-1)).sum() / max(n, 1)
        push = sum_rows(cosines, z1, own[:, None], shared=(candidates,), chunk_size=chunk_size) / max(n * (n - 1), 1)
        return (pull + push) * world_size()
