"""The evidence lower bound of a variational autoencoder with a diagonal Gaussian posterior, and its importance-weighted
tightening. Everything is in nats per image: sums over pixels and latents, then a mean over the global batch.

Each rank returns the sum over its own rows, times the world size, over the number of rows in the global batch: DDP's
mean over ranks is then exactly the mean over the global batch, value and gradient, even when ranks hold unequal numbers
of rows. Everything is computed in float32, or in float64 where that comes in.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_ssl.checks import check_positive
from lit_ssl.distributed import all_reduce_sum, global_count, world_size

__all__ = [
    "Elbo",
    "bernoulli_log_likelihood",
    "elbo",
    "gaussian_kl",
    "gaussian_log_likelihood",
    "iwae_bound",
    "log_importance_weight",
]


class Elbo(NamedTuple):
    """Scalars, in nats per image of the global batch.

    Attributes:
        loss: what to minimise, ``reconstruction + beta * kl`` with the KL's free bits; -``elbo`` where beta is 1 and
            there are none.
        elbo: the bound itself, at most log p(x), whatever ``beta`` and the free bits.
        reconstruction: E_q[-log p(x|z)].
        kl: KL(q(z|x) || p(z)), of which no bits are free.
    """

    loss: Tensor
    elbo: Tensor
    reconstruction: Tensor
    kl: Tensor


def bernoulli_log_likelihood(logits: Tensor, target: Tensor) -> Tensor:
    """log p(x|z) of independent Bernoulli pixels: the negative cross-entropy, summed over pixels.

    It is a likelihood for pixels that are 0 or 1. For pixels in between it is the expectation over images drawn from
    them, and neither a density nor comparable with figures on binary images.

    Args:
        logits: (..., C, H, W), log odds of a pixel being 1.
        target: (C, H, W) with any leading dimensions that broadcast to those of ``logits``, in [0, 1].

    Returns:
        (...), one sum an image, in nats.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, target = _promoted(logits, target)
        target = target.expand_as(logits)
        return -F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(-3).sum(-1)


def gaussian_log_likelihood(mean: Tensor, target: Tensor, log_variance: float | Tensor) -> Tensor:
    """log p(x|z) of independent Gaussian pixels: a log density, summed over pixels; it may be positive.

    Args:
        mean: (..., C, H, W).
        target: (C, H, W) with any leading dimensions that broadcast to those of ``mean``.
        log_variance: of a pixel; a number, or a tensor that broadcasts to ``mean``.

    Returns:
        (...), one sum an image, in nats.
    """
    with torch.autocast(mean.device.type, enabled=False):
        mean, target = _promoted(mean, target)
        if isinstance(log_variance, Tensor):
            log_variance = log_variance.to(mean.dtype)
            precision: float | Tensor = torch.exp(-log_variance)
        else:
            precision = math.exp(-log_variance)
        error = (target - mean).square() * precision
        return -0.5 * (error + (log_variance + math.log(2 * math.pi))).flatten(-3).sum(-1)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each latent, in nats (Kingma & Welling 2013, appendix B).

    Args:
        mean, log_variance: (B, Z) of the posterior.

    Returns:
        (B, Z), each at least 0 up to rounding.

    Raises:
        ValueError: shapes that differ or are not (B, Z).
    """
    if mean.ndim != 2 or mean.shape != log_variance.shape:
        raise ValueError(
            f"mean and log_variance must both be (B, Z), got {tuple(mean.shape)} and {tuple(log_variance.shape)}"
        )
    with torch.autocast(mean.device.type, enabled=False):
        mean, log_variance = _promoted(mean, log_variance)
        return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)


def elbo(
    log_likelihood: Tensor, mean: Tensor, log_variance: Tensor, *, beta: float = 1.0, free_bits: float = 0.0
) -> Elbo:
    """The evidence lower bound (Kingma & Welling 2013, arXiv:1312.6114, eq. 7), and what to minimise in its place.

    With ``free_bits`` = lambda, the loss counts sum_j max(lambda, mean over the global batch of KL_j), j over latents:
    Kingma et al. 2016 (arXiv:1606.04934, appendix C.8), each latent a group of its own. The maximum is taken of the
    batch's mean, not of each sample's KL, so a latent may still tell some images apart from others at no cost.

    Args:
        log_likelihood: (B,), log p(x|z) of each image for a z from its posterior, *summed* over pixels; see
            :func:`bernoulli_log_likelihood`. A mean over pixels would be a beta of as many times the size.
        mean, log_variance: (B, Z) of the posterior, a diagonal Gaussian; the prior is the standard one.
        beta: weight of the KL, at least 0 (Higgins et al. 2017, beta-VAE); 1 is the bound.
        free_bits: nats of each latent that cost nothing, at least 0.

    Returns:
        The :class:`Elbo`, each scalar this rank's share of the global mean.

    Raises:
        ValueError: shapes that do not agree, or an option outside its range.
    """
    check_positive("beta", beta, zero=True)
    check_positive("free_bits", free_bits, zero=True)
    if log_likelihood.shape != mean.shape[:1]:
        raise ValueError(f"log_likelihood must be (B,), B={len(mean)} as of mean, got {tuple(log_likelihood.shape)}")
    with torch.autocast(mean.device.type, enabled=False):
        rows = max(global_count(len(mean)), 1)
        by_latent = gaussian_kl(mean, log_variance).sum(0)  # (Z,), of this rank's rows
        kl = by_latent.sum() * (world_size() / rows)
        reconstruction = -_promoted(log_likelihood)[0].sum() * (world_size() / rows)
        cost = (all_reduce_sum(by_latent) / rows).clamp(min=free_bits).sum() if free_bits else kl
        return Elbo(reconstruction + beta * cost, -(reconstruction + kl), reconstruction, kl)


def log_importance_weight(log_likelihood: Tensor, z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log p(x|z) p(z) / q(z|x) for K samples of each image's posterior.

    Args:
        log_likelihood: (K, B), log p(x|z), summed over pixels.
        z: (K, B, Z), drawn from the posterior.
        mean, log_variance: (B, Z) of the posterior.

    Returns:
        (K, B).
    """
    with torch.autocast(z.device.type, enabled=False):
        log_likelihood, z, mean, log_variance = _promoted(log_likelihood, z, mean, log_variance)
        ratio = (z - mean).square() * torch.exp(-log_variance) + log_variance - z.square()
        return log_likelihood + 0.5 * ratio.sum(-1)


def iwae_bound(log_weight: Tensor) -> Tensor:
    """The importance-weighted bound IWAE_K = E log (1/K) sum_k w_k (Burda et al. 2016, arXiv:1509.00519, eq. 8).

    IWAE_1 is the ELBO; in expectation the bound rises with K towards log p(x).

    Args:
        log_weight: (K, B) of :func:`log_importance_weight`, K at least 1.

    Returns:
        A scalar in nats per image: this rank's share of the mean over the global batch.

    Raises:
        ValueError: ``log_weight`` is not (K, B).
    """
    if log_weight.ndim != 2 or not len(log_weight):
        raise ValueError(f"log_weight must be (K, B) with K of at least 1, got {tuple(log_weight.shape)}")
    with torch.autocast(log_weight.device.type, enabled=False):
        (log_weight,) = _promoted(log_weight)
        samples, rows = log_weight.shape
        bound = torch.logsumexp(log_weight, 0) - math.log(samples)
        return bound.sum() * (world_size() / max(global_count(rows), 1))


def _promoted(*tensors: Tensor) -> list[Tensor]:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]
