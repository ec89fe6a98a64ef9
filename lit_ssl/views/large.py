"""Crop, colour jitter and blur of one large image on a CPU.

A batch of small images shares its passes over memory, and each image's strengths go along as tensors. An image that
fills the cache gains nothing from company; alone, its strengths are plain numbers. Then an operation of its own kind
replaces the general one, and a narrow blur has few taps.
Results are those of ``colour.jitter`` and ``blur.gaussian_blur`` up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .blur import SIGMAS
from .colour import BRIGHTNESS, CONTRAST, SATURATION, luma
from .geometry import axes, separable

__all__ = ["blur", "crop", "grids", "hue", "jitter"]

_BAND = 32  # rows a matrix product makes: it reads little more than what it needs, and is large enough to be fast


def grids(size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Where the pixels of a resized image look in the image, as ``grid_sample`` has it; and those of its mirror image.

    Returns:
        Two tensors (1, *size, 2).
    """
    rows, columns = ((torch.arange(side, dtype=dtype) + 0.5) * (2 / side) - 1 for side in size)
    plain = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)[None]
    return plain, plain.flip(2)


def crop(image: Tensor, box: Sequence[int], flip: bool, grids: tuple[Tensor, Tensor]) -> Tensor:
    """Crop, resize and mirror: (1, C, h, w) in [0, 1] up to rounding, as :func:`lit_ssl.views.geometry.resample` does.

    Args:
        image: uint8 (C, H, W).
        box: top, left, height, width in pixels, inside the image.
        flip: mirror the result.
        grids: from :func:`grids`, for the size and dtype of the result.
    """
    top, left, tall, wide = box
    height, width = grids[0].shape[1:3]
    x = image[None, :, top : top + tall, left : left + wide].to(grids[0].dtype).mul_(1 / 255)
    if tall <= height and wide <= width:  # two neighbours an axis
        return F.grid_sample(x, grids[flip], padding_mode="border", align_corners=False)
    whole = torch.tensor([[0, 0, tall, wide]])
    down, across = (a.to(x.dtype, x.device) for a in axes(whole, torch.tensor([flip]), (tall, wide), (height, width)))
    return separable(x, down.weights(), across.weights())


def jitter(x: Tensor, factors: Sequence[float], order: Sequence[int]) -> Tensor:
    """Brightness, contrast, saturation and hue, in the order given.

    Args:
        x: (1, C, h, w) in [0, 1], contiguous. Is overwritten.
        factors: of brightness, contrast and saturation (1 changes nothing), and the turn of the hue.
        order: a permutation of 0 to 3.
    """
    pixels = x.view(x.shape[1], -1)
    for kind in order:
        factor = factors[kind]
        if kind == BRIGHTNESS:
            pixels.mul_(factor).clamp_(0, 1)
        elif kind == CONTRAST:
            mean = pixels.mean(dim=1) @ luma(x)
            torch.add(mean * (1 - factor), pixels, alpha=factor, out=pixels).clamp_(0, 1)
        elif len(pixels) == 3 and kind == SATURATION:
            matrix = torch.eye(3).to(x).mul_(factor).add_(luma(x), alpha=1 - factor)
            torch.clamp(matrix @ pixels, 0, 1, out=pixels)
        elif len(pixels) == 3 and factor:
            hue(pixels, factor)
    return x


def hue(pixels: Tensor, turn: float) -> None:
    """Turn the hue of HSV, exactly, in place; see ``colour.turns``. pixels: (3, n) in [0, 1]; turn: -0.5 to 0.5."""
    sixths = [(6 * turn + 2 * apart + 3) % 6 - 3 for apart in range(3)]
    weight = [min(max(3 - 2 * abs(s), -1.0), 1.0) for s in sixths]
    high, low = pixels.amax(dim=0), pixels.amin(dim=0)
    turned = pixels.new_tensor([[weight[(own - place) % 3] for own in range(3)] for place in range(3)]) @ pixels
    turned.add_(high + low, alpha=(1 - sum(weight)) / 2)
    torch.clamp(turned, low, high, out=pixels)


def blur(x: Tensor, sigma: float, radius: int) -> Tensor:
    """Gaussian blur with reflected edges. x: (1, C, h, w); sigma in pixels; the kernel has ``2 * radius + 1`` taps.

    Taps further than 4.5 sigma away are not computed; they are 0 in ``gaussian_blur``, too.
    """
    height, width = x.shape[2:]
    radius = min(radius, max(1, math.ceil(SIGMAS * sigma)), height - 1, width - 1)
    tap = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.softmax(-0.5 * (tap / sigma) ** 2, dim=0).to(x.dtype)
    rows, columns = _band(height), _band(width)
    down = _toeplitz(kernel, rows)
    across = (down if rows == columns else _toeplitz(kernel, columns)).T
    down = down.expand(height // rows, -1, -1)
    out = torch.empty_like(x)
    for plane, result in zip(x[0], out[0], strict=True):  # one channel at a time stays in the cache
        padded = F.pad(plane[None], (radius,) * 4, mode="reflect")[0]
        tall = torch.bmm(down, padded.unfold(0, rows + 2 * radius, rows).transpose(1, 2)).view(height, -1)
        for start in range(0, width, columns):
            torch.mm(tall[:, start : start + across.shape[0]], across, out=result[:, start : start + columns])
    return out


def _band(size: int) -> int:
    """The greatest divisor of ``size`` up to 32; all of a size that has none worth it."""
    best = max(d for d in range(1, min(size, _BAND) + 1) if size % d == 0)
    return best if best >= _BAND // 2 else size


def _toeplitz(kernel: Tensor, rows: int) -> Tensor:
    """The matrix (rows, rows + taps - 1) that has the kernel in each row, one place further to the right."""
    spread = F.pad(kernel, (rows - 1, rows - 1))
    return spread.unfold(0, rows + len(kernel) - 1, 1).flip(0)
