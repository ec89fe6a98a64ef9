"""Gaussian blur on a batch of images, each with its own width."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .geometry import separable
from .rows import sent

__all__ = ["SIGMAS", "gaussian_blur", "kernel_radius"]

SIGMAS = 4.5  # where a kernel ends, if not before: 7e-6 of its weight lie beyond, less than any picture shows


def kernel_radius(size: int) -> int:
    """Taps on either side of the middle one, for a kernel of 10 % of the image (SimCLR, arXiv:2002.05709, App. A).

    23 taps at 224 pixels, as in the authors' code; at least 3 taps.
    """
    return max(1, size // 20)


@lru_cache(maxsize=64)
def _reflected(size: int, radius: int) -> Tensor:
    """The pixels that each pixel's kernel covers, reflected at the edges: int64 (size, 2 * radius + 1)."""
    place = (torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)).abs()
    return (size - 1) - ((size - 1) - place).abs()


def _axis(sigma: Tensor, radius: int, size: int) -> Tensor:
    """Blur matrices with the image reflected at its edges: (B, size, size)."""
    tap = torch.arange(-radius, radius + 1, dtype=sigma.dtype, device=sigma.device)
    weight = torch.exp(-0.5 * (tap / sigma[:, None]) ** 2)
    weight *= tap.abs() <= (SIGMAS * sigma).ceil().clamp(min=1)[:, None]
    weight /= weight.sum(dim=1, keepdim=True)
    place = sent(_reflected(size, radius), sigma.device)
    out = sigma.new_zeros((len(sigma), size, size))
    return out.scatter_add_(2, place.expand(len(sigma), -1, -1), weight[:, None].expand(-1, size, -1))


def gaussian_blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Equals ``torchvision.transforms.v2.functional.gaussian_blur`` to 1e-5.

    Args:
        x: (B, C, h, w), floating point.
        sigma: (B,) in pixels, positive.
        radius: the kernel has ``2 * radius + 1`` taps, cut to what reflection allows in smaller images.
    """
    sigma = sigma.to(x)
    down, across = (_axis(sigma, min(radius, size - 1), size) for size in x.shape[2:])
    return separable(x, down, across)
