"""InfoNCE in its two classical shapes, with hard, debiased and decoupled negatives.

Both losses take this rank's rows and compare them with the rows of all ranks. Each rank returns the sum over its own
rows, times the world size, over the number of rows in the global batch: DDP's mean over ranks is then exactly the mean
over the global batch, value and gradient, even when ranks hold unequal numbers of rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lit_ssl.checks import check_integer, check_positive
from lit_ssl.distributed import gather, rank, row_counts, world_size

from .rows import log_sum_negatives, log_sum_products, pair, sum_rows, unit

__all__ = ["contrastive_options", "info_nce", "nt_xent"]


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float,
    beta: float = 0.0,
    tau_plus: float = 0.0,
    decoupled: bool = False,
    chunk_size: int | None = None,
) -> Tensor:
    """The normalised temperature-scaled cross entropy of SimCLR (Chen et al. 2020, arXiv:2002.05709, eq. 1).

    Row i of ``z1`` and row i of ``z2`` are two views of one image. Each of the 2N rows of the global batch is pulled to
    its partner and pushed from the 2N - 2 rows of other images; the pair of a row with itself is masked out.

    Args:
        z1, z2: (B, D) projections of this rank, of any floating dtype; normalised here; computed in float32 or wider.
        temperature: divides the cosine similarity; positive. SimCLR's appendix B.7 uses 0.1 to 0.5.
        beta: concentration of the negatives on hard ones (Robinson et al. 2021, arXiv:2010.04592); 0 weighs all alike.
        tau_plus: assumed share of false negatives (Chuang et al. 2020, arXiv:2007.00224), in [0, 1).
        decoupled: leave the positive out of the denominator (Yeh et al. 2021, arXiv:2110.06848).
        chunk_size: rows whose similarities are held at once, exact all the same; None holds all of them.

    Returns:
        A scalar, at least float32.

    Raises:
        ValueError: shapes that differ or are not (B, D), or an option outside its range.
    """
    contrastive_options(temperature=temperature, beta=beta, tau_plus=tau_plus, chunk_size=chunk_size)
    z1, z2 = pair("z1", z1, "z2", z2)
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = unit(z1), unit(z2)
        counts = row_counts(len(z1))
        n, start = sum(counts), sum(counts[: rank()])
        candidates = torch.cat([gather(z1, counts), gather(z2, counts)])  # (2n, D)
        own = start + torch.arange(len(z1), device=z1.device)
        positive = (z1 * z2).sum(-1) / temperature

        def rows(query: Tensor, positive: Tensor, excluded: Tensor, candidates: Tensor) -> Tensor:
            if n < 2:
                return positive * 0  # nothing to tell the positive from
            log_negatives = _log_negatives(query, candidates, excluded, 2 * n - 2, temperature, beta)
            return _cross_entropy(log_negatives, positive, 2 * n - 2, -1 / temperature, tau_plus, decoupled)

        total = sum_rows(
            rows,
            torch.cat([z1, z2]),
            torch.cat([positive, positive]),
            torch.stack([own, own + n], 1).repeat(2, 1),  # a row's own columns: itself and its partner
            shared=(candidates,),
            chunk_size=chunk_size,
        )
        return total * (world_size() / max(2 * n, 1))


def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float,
    queue: Tensor | None = None,
    beta: float = 0.0,
    tau_plus: float = 0.0,
    decoupled: bool = False,
    kappa: float | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """InfoNCE from queries to keys (van den Oord et al. 2018, arXiv:1807.03748).

    Row i of ``key`` is the positive of row i of ``query``. Negatives are the rows of ``queue`` where one is given
    (MoCo v2, He et al. 2020, arXiv:1911.05722), else the other keys of the global batch (MoCo v3, arXiv:2104.02057).

    Args:
        query, key: (B, D) of this rank; normalised here; computed in float32 or wider.
        temperature: divides the cosine similarity; positive.
        queue: (K, D) keys of earlier batches, alike on all ranks; normalised here; receives no gradient.
        kappa: takes the t-distributed spherical similarity (1 + cos) / 2 / (1 + kappa (1 - cos)) in place of the
            cosine; at least 0, and 1/64 in OCL (Yang et al. 2025, arXiv:2411.09858, and its code).
        beta, tau_plus, decoupled, chunk_size: as in :func:`nt_xent`.

    Returns:
        A scalar, at least float32.

    Raises:
        ValueError: shapes that differ or are not (B, D), a queue that is not (K, D), or an option outside its range.
    """
    contrastive_options(temperature=temperature, beta=beta, tau_plus=tau_plus, chunk_size=chunk_size)
    if kappa is not None:
        check_positive("kappa", kappa, zero=True)
    query, key = pair("query", query, "key", key)
    if queue is not None and (queue.ndim != 2 or queue.shape[1] != query.shape[1]):
        raise ValueError(f"queue must be (K, {query.shape[1]}), got {tuple(queue.shape)}")
    with torch.autocast(query.device.type, enabled=False):
        query, key = unit(query), unit(key)
        counts = row_counts(len(query))
        n, start = sum(counts), sum(counts[: rank()])
        candidates = gather(key, counts) if queue is None else unit(queue.detach())
        own = start + torch.arange(len(query), device=query.device)
        least = -1 / temperature if kappa is None else 0.0

        negatives = len(candidates) - (1 if queue is None else 0)

        def rows(query: Tensor, positive: Tensor, own: Tensor, candidates: Tensor) -> Tensor:
            if negatives < 1:
                return positive * 0
            excluded = own if queue is None else None
            log_negatives = _log_negatives(query, candidates, excluded, negatives, temperature, beta, kappa)
            return _cross_entropy(log_negatives, positive, negatives, least, tau_plus, decoupled)

        positive = _similarity((query * key).sum(-1), temperature, kappa)
        total = sum_rows(rows, query, positive, own[:, None], shared=(candidates,), chunk_size=chunk_size)
        return total * (world_size() / max(n, 1))


def _similarity(cosine: Tensor, temperature: float, kappa: float | None) -> Tensor:
    if kappa is not None:
        cosine = (1 + cosine) / (2 * (1 + kappa * (1 - cosine)))
    return cosine / temperature


def _log_negatives(
    query: Tensor,
    candidates: Tensor,
    excluded: Tensor | None,
    negatives: int,
    temperature: float,
    beta: float,
    kappa: float | None = None,
) -> Tensor:
    """log Ng of each row: (R,). excluded: int64 (R, k), the columns that are no negatives of a row."""
    if not beta and kappa is None:
        return log_sum_products(query / temperature, candidates, excluded)
    logits = _similarity(query @ candidates.T, temperature, kappa)
    if excluded is not None:
        logits = logits.scatter(1, excluded, -torch.inf)
    return log_sum_negatives(logits, negatives, beta)


def _cross_entropy(
    log_negatives: Tensor, positive: Tensor, negatives: int, least: float, tau_plus: float, decoupled: bool
) -> Tensor:
    """-log(e^p / (e^p + Ng)) for each row, with Ng kept as a logarithm throughout.

    log_negatives, positive: (R,); negatives: how many a row has; least: what a similarity over temperature is at its
    lowest.
    """
    if tau_plus:
        log_negatives = _debias(log_negatives, positive, negatives, least, tau_plus)
    return (log_negatives if decoupled else torch.logaddexp(positive, log_negatives)) - positive


def _debias(log_negatives: Tensor, positive: Tensor, negatives: int, least: float, tau_plus: float) -> Tensor:
    """log max{(Ng - tau_plus N e^p) / (1 - tau_plus), N e^least}: Chuang et al. 2020, eq. 8, with least = -1/t."""
    excess = positive + math.log(tau_plus * negatives) - log_negatives
    safe = excess.clamp(max=-1e-6)  # where the difference is not positive the floor is taken, and no gradient flows
    debiased = log_negatives + torch.log(-torch.expm1(safe)) - math.log1p(-tau_plus)
    floor = math.log(negatives) + least
    return torch.where(excess < -1e-6, debiased, floor).clamp(min=floor)


def contrastive_options(
    *,
    temperature: float,
    beta: float = 0.0,
    tau_plus: float = 0.0,
    decoupled: bool = False,
    chunk_size: int | None = None,
) -> dict[str, Any]:
    """The options as the losses take them, checked; methods call it when they are constructed.

    Raises:
        ValueError: an option outside its range: names the option, its value and what is allowed.
    """
    check_positive("temperature", temperature)
    check_positive("beta", beta, zero=True)
    if not 0 <= tau_plus < 1:
        raise ValueError(f"tau_plus must be in [0, 1), got {tau_plus}")
    check_integer("chunk_size", chunk_size, optional=True)
    return {
        "temperature": temperature,
        "beta": beta,
        "tau_plus": tau_plus,
        "decoupled": decoupled,
        "chunk_size": chunk_size,
    }
