"""Crop, colour jitter and blur of one large image on a CPU.

A batch of small images shares its passes over memory, and each image's strengths go along as tensors. An image that
fills the cache gains nothing from company; alone, its strengths are plain numbers, and then fewer and cheaper passes
do: a sum of few rows of pixels in place of a matrix product, no product for what a strength leaves as it is, no
clamping of what cannot leave [0, 1].
Results are those of ``geometry.resample``, ``colour.jitter`` and ``blur.gaussian_blur`` up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .blur import SIGMAS, reflected
from .colour import BRIGHTNESS, CONTRAST, HUE, shares
from .geometry import axis

__all__ = ["blur", "crop", "hue", "jitter"]

_BAND = 32  # columns a matrix product makes: it reads little more than what it needs, and is large enough to be fast


def crop(image: Tensor, box: Sequence[int], flip: bool, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Crop, resize and mirror: (1, C, h, w) in [0, 1] up to rounding, as :func:`lit_ssl.views.geometry.resample` does.

    Args:
        image: uint8 (C, H, W).
        box: top, left, height, width in pixels, inside the image.
        flip: mirror the result.
        size: height and width of the result.
        dtype: to compute in, that of the result.
    """
    top, left, tall, wide = box
    x = image[:, top : top + tall, left : left + wide].to(dtype).reshape(-1, wide)
    narrow = x.new_empty(len(x), size[1])
    for source, target, across in _columns(wide, size[1], dtype)[flip]:
        torch.mm(x[:, source], across, out=narrow[:, target])
    place, share = _rows(tall, size[0], len(image), dtype)
    return F.embedding_bag(place, narrow, mode="sum", per_sample_weights=share).view(1, -1, *size)


def _taps(source: int, target: int) -> tuple[Tensor, Tensor]:
    """What each of ``target`` pixels is made of: places in the source and weights, (target, taps)."""
    start, length = torch.zeros(1, dtype=torch.float64), torch.full((1,), source, dtype=torch.float64)
    place, weight = axis(start, length, None, source, target).taps()
    return place[0], weight[0]


_Bands = list[tuple[slice, slice, Tensor]]


@lru_cache(maxsize=512)
def _columns(source: int, target: int, dtype: torch.dtype) -> tuple[_Bands, _Bands]:
    """How bytes become a row of pixels in [0, 1], and its mirror image.

    Returns:
        Two lists: columns of the source, adjacent columns that are made of them, and by what matrix.
    """
    place, weight = _taps(source, target)
    matrix = torch.zeros(target, source, dtype=dtype).scatter_add_(1, place, weight.div_(255).to(dtype))
    matrix, first, last = matrix.T.contiguous(), place.amin(dim=1).tolist(), place.amax(dim=1).tolist()
    plain, mirrored = [], []
    for start in range(0, target, _BAND):
        stop = min(start + _BAND, target)
        taken = slice(first[start], last[stop - 1] + 1)
        band = matrix[taken, start:stop]
        plain.append((taken, slice(start, stop), band.contiguous()))
        mirrored.append((taken, slice(target - stop, target - start), band.flip(1)))
    return plain, mirrored


@lru_cache(maxsize=512)
def _rows(source: int, target: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rows of the source that each row of the result is a sum of, and their weights: (channels * target, taps)."""
    place, weight = _taps(source, target)
    return _of_channels(place, source, channels), weight.to(dtype).repeat(channels, 1)


def _of_channels(place: Tensor, height: int, channels: int) -> Tensor:
    """Rows of an image (h, taps) as rows of all its channels, one below the other: int32 (channels * h, taps)."""
    return (place + height * torch.arange(channels)[:, None, None]).to(torch.int32).flatten(0, 1)


def jitter(x: Tensor, factors: Sequence[float], order: Sequence[int]) -> Tensor:
    """Brightness, contrast, saturation and hue, in the order given; nothing that a factor of at most 1 does is clamped.

    Args:
        x: (1, C, h, w) in [0, 1], contiguous. May be overwritten.
        factors: of brightness, contrast and saturation (1 changes nothing), and the turn of the hue.
        order: a permutation of 0 to 3.
    """
    pixels, share = x.view(x.shape[1], -1), shares(x.shape[1])
    for kind in order:
        factor = factors[kind]
        if kind == HUE:
            pixels = hue(pixels, factor) if len(pixels) == 3 and factor else pixels
            continue
        if kind == BRIGHTNESS:
            pixels.mul_(factor)
        elif kind == CONTRAST:
            mean = sum(a * b for a, b in zip(pixels.mean(dim=1).tolist(), share, strict=True))
            torch.add(pixels.new_tensor((1 - factor) * mean), pixels, alpha=factor, out=pixels)
        elif len(pixels) == 3:
            matrix = [
                [(1 - factor) * s + factor * (row == column) for column, s in enumerate(share)] for row in range(3)
            ]
            pixels = torch.tensor(matrix, dtype=x.dtype) @ pixels
        if factor > 1:
            pixels.clamp_(0, 1)
    return pixels.view_as(x)


def hue(pixels: Tensor, turn: float) -> Tensor:
    """Turn the hue of HSV, exactly; see ``colour.turns``. pixels: (3, n) in [0, 1]; turn: -0.5 to 0.5."""
    sixths = [(6 * turn + 2 * apart + 3) % 6 - 3 for apart in range(3)]
    a, b, c = (min(max(3 - 2 * abs(s), -1.0), 1.0) for s in sixths)
    red, green, blue = pixels.unbind(0)
    high, low = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(high, blue, out=high)
    torch.minimum(low, blue, out=low)
    turned = torch.tensor([[a, b, c], [c, a, b], [b, c, a]], dtype=pixels.dtype) @ pixels
    turned.add_(high + low, alpha=(1 - a - b - c) / 2)
    return torch.clamp(turned, low, high, out=pixels)


def blur(x: Tensor, sigma: float, radius: int) -> Tensor:
    """Gaussian blur with reflected edges. x: (1, C, h, w); sigma in pixels; the kernel has ``2 * radius + 1`` taps.

    Taps further than 4.5 sigma away are not computed; they are 0 in ``gaussian_blur``, too.
    """
    channels, height, width = x.shape[1:]
    radius = min(radius, max(1, math.ceil(SIGMAS * sigma)))
    high, wide = min(radius, height - 1), min(radius, width - 1)
    kernel = _kernel(sigma, high, x.dtype)
    place = _blur_rows(height, high, channels)
    share = kernel.expand(len(place), -1).contiguous()
    tall = F.embedding_bag(place, x.view(-1, width), mode="sum", per_sample_weights=share)
    kernel = kernel if wide == high else _kernel(sigma, wide, x.dtype)
    across = x.new_zeros(width, width).scatter_add_(1, reflected(width, wide), kernel.expand(width, -1)).T
    out = torch.empty_like(tall)
    for start in range(0, width, _BAND):
        taken, made = slice(max(0, start - wide), start + _BAND + wide), slice(start, start + _BAND)
        torch.mm(tall[:, taken], across[taken, made], out=out[:, made])
    return out.view_as(x)


def _kernel(sigma: float, radius: int, dtype: torch.dtype) -> Tensor:
    weights = [math.exp(-0.5 * (tap / sigma) ** 2) for tap in range(-radius, radius + 1)]
    total = sum(weights)
    return torch.tensor([weight / total for weight in weights], dtype=dtype)


@lru_cache(maxsize=64)
def _blur_rows(height: int, radius: int, channels: int) -> Tensor:
    return _of_channels(reflected(height, radius), height, channels)
