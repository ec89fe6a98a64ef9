"""What the geometry of embeddings tells without a label."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lit_ssl.checks import check_integer

from .checks import check_features

__all__ = ["alignment", "alpha_req", "feature_std", "rankme", "uniformity"]


def _double(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()


def _eigenvalues(x: Tensor) -> Tensor:
    """Of x^T x, largest first, (min(N, D),) float64, rounding below zero cut off."""
    gram = x.mT @ x if x.shape[1] <= x.shape[0] else x @ x.mT
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)


def rankme(x: Tensor) -> float:
    """Effective rank of embeddings: exp of the entropy of the singular values' shares.

    Source: RankMe, Garrido et al. 2023, arXiv:2210.02885, equation 1. Not centred, as there. Compare it only within one
    method, and at one number of rows.

    Args:
        x: floating-point (N, D).

    Returns:
        from 1 (all embeddings on one line: collapse) to min(N, D); 0 if all are zero.

    Raises:
        ValueError: shape, dtype or values out of range.
    """
    check_features("x", x)
    singular = _eigenvalues(_double(x)).sqrt()
    if not float(singular[0]) > 0:
        return 0.0
    p = singular / singular.sum()
    return float(torch.special.entr(p).sum().exp())


def alpha_req(x: Tensor, *, first: int = 11, last: int = 100) -> float:
    """Decay of the covariance spectrum: the alpha of eigenvalue_i ~ i^-alpha. Near 1 is best for probes, as published.

    Source: alpha-ReQ, Agrawal et al. 2022 (NeurIPS). Least squares in log-log coordinates with weight 1/i, over the
    eigenvalues ``first`` to ``last`` (counted from 1) that rise above rounding; the default range is the one of
    Stringer et al. 2019, cut at 100.

    Args:
        x: floating-point (N, D).
        first, last: the range of the fit.

    Returns:
        alpha, or nan where fewer than three eigenvalues lie in the range.

    Raises:
        ValueError: shape, dtype or values out of range, or an empty range.
    """
    check_features("x", x)
    check_integer("first", first)
    check_integer("last", last, first + 2)
    x = _double(x)
    x = x - x.mean(0)
    eigenvalues = _eigenvalues(x)
    eigenvalues = eigenvalues[eigenvalues > eigenvalues[0] * 1e-12][first - 1 : last]
    if len(eigenvalues) < 3:
        return math.nan
    rank = torch.arange(first, first + len(eigenvalues), dtype=torch.float64, device=x.device)
    u, v, weight = rank.log(), eigenvalues.log(), 1 / rank / (1 / rank).sum()
    u = u - (weight * u).sum()
    return -float((weight * u * v).sum() / (weight * u * u).sum())


def alignment(z1: Tensor, z2: Tensor) -> float:
    """Mean squared distance of the normalised embeddings of two views of an image: 0 is perfect, 2 is unrelated.

    Source: Wang & Isola 2020, arXiv:2005.10242, with alpha = 2.

    Args:
        z1, z2: floating-point (N, D); row i of each is the same image.

    Raises:
        ValueError: shape, dtype or values out of range, or shapes that differ.
    """
    check_features("z1", z1)
    check_features("z2", z2)
    if z1.shape != z2.shape:
        raise ValueError(f"z1 and z2 must have the same shape, got {tuple(z1.shape)} and {tuple(z2.shape)}")
    return float((normalize(_double(z1), dim=1) - normalize(_double(z2), dim=1)).square().sum(1).mean())


def uniformity(z: Tensor) -> float:
    """Log of the mean Gaussian potential of pairs of normalised embeddings: 0 is collapse, about -4 is an even spread.

    Source: Wang & Isola 2020, arXiv:2005.10242, with t = 2.

    Args:
        z: floating-point (N, D), N at least 2.

    Raises:
        ValueError: shape, dtype or values out of range.
    """
    check_features("z", z)
    if len(z) < 2:
        raise ValueError(f"z must hold at least 2 rows, got {len(z)}")
    z = normalize(_double(z), dim=1)
    n, total = len(z), 0.0
    for start in range(0, n, 1024):
        total += float((-2 * _squared(z, start)).exp().sum())
    return math.log((total - n) / (n * (n - 1)))  # each row's distance to itself contributes exp(0)


def _squared(z: Tensor, start: int) -> Tensor:
    rows = z[start : start + 1024]
    square = (rows.square().sum(1)[:, None] + z.square().sum(1) - 2 * rows @ z.mT).clamp_min(0)
    own = torch.arange(len(rows), device=z.device)
    square[own, own + start] = 0  # exactly, so that it can be taken out again
    return square


def feature_std(z: Tensor) -> float:
    """Spread of normalised embeddings: mean over dimensions of their standard deviation, times sqrt(D).

    Source: Chen & He 2021, arXiv:2011.10566, section 4.1, which compares the deviation with 1 / sqrt(D).

    Args:
        z: floating-point (N, D).

    Returns:
        0 for collapse to a point, about 1 for embeddings spread evenly over the sphere.

    Raises:
        ValueError: shape, dtype or values out of range.
    """
    check_features("z", z)
    return float(normalize(_double(z), dim=1).std(0, correction=0).mean()) * math.sqrt(z.shape[1])
