"""Where a view looks: crop boxes, and one resample that crops, flips and resizes a whole batch.

An axis-aligned crop, a flip and a resize are separable: along each axis they are one matrix an image. A batch is two
batched matrix products, antialiased at no further cost, and a flip is another order of a matrix's rows. Images that are
only enlarged need two neighbours an axis and no matrix; for large ones ``grid_sample`` reads just those, and for small
ones on a CPU a sum of two rows of pixels takes the place of the first product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import sent

__all__ = ["TRIES", "Axis", "axes", "axis", "crop_boxes", "resample", "sampler", "separable"]

TRIES = 10  # of a crop's shape, as in torchvision's RandomResizedCrop
_LARGE = 72  # pixels an axis from which grid_sample is the faster of the two (measured on one core)


def crop_boxes(chance: Tensor, size: tuple[int, int] | Tensor, scale: Tensor, ratio: Tensor) -> Tensor:
    """Boxes of random resized crops: int64 (B, 4), top, left, height, width in pixels.

    Distributed as ``torchvision.transforms.RandomResizedCrop.get_params``: the first of ten drawn shapes that fits the
    image, at a uniform place; if none fits, the largest central crop whose aspect is within ``ratio``.

    Args:
        chance: float64 (B, 22) uniform in [0, 1): of ten areas, ten aspects and the place.
        size: height and width of the images, or int64 (B, 2), those of each row.
        scale: float64 (B, 2), least and greatest area, as fractions of the image's.
        ratio: float64 (B, 2), least and greatest width / height, drawn uniformly in its logarithm.
    """
    whole = torch.as_tensor(size, dtype=chance.dtype, device=chance.device).view(-1, 2)
    height, width = whole.split(1, dim=1)
    least, most = scale.mul(height * width).split(1, dim=1)
    low, high = ratio.log().split(1, dim=1)
    area = torch.addcmul(least, chance[:, :TRIES], most - least).sqrt_()
    aspect = torch.addcmul(low, chance[:, TRIES : 2 * TRIES], high - low).mul_(0.5).exp_()  # its square root
    wide, tall = (area * aspect).round_(), (area / aspect).round_()
    fits = (torch.minimum(wide, tall) >= 1) & (wide <= width) & (tall <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    shape = torch.cat([tall.gather(1, first), wide.gather(1, first)], dim=1)
    corner = ((whole - shape + 1) * chance[:, 2 * TRIES :]).floor_()
    tallest, widest = torch.minimum(width / ratio[:, :1], height), torch.minimum(height * ratio[:, 1:], width)
    fallback = torch.cat([tallest, widest], dim=1).round_().clamp_(min=1)
    fallback = torch.cat([((whole - fallback) / 2).floor_(), fallback], dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), torch.cat([corner, shape], dim=1), fallback).to(torch.int64)


@dataclass(frozen=True)
class Axis:
    """Where the pixels of B results look along one axis. Pixel j of the source spans j to j + 1.

    Args:
        centre: floating point (B, target), the middle of what each pixel of the result stands for.
        low, high: (B,), the span of source pixels that count.
        scale: (B,), source pixels a pixel of the result.
        source: number of pixels in the source.
    """

    centre: Tensor
    low: Tensor
    high: Tensor
    scale: Tensor
    source: int

    def __getitem__(self, rows: slice) -> Axis:
        return Axis(self.centre[rows], self.low[rows], self.high[rows], self.scale[rows], self.source)

    def to(self, dtype: torch.dtype, device: torch.device) -> Axis:
        parts = (self.centre, self.low, self.high, self.scale)
        centre, low, high, scale = (sent(part.to(dtype), device) for part in parts)
        return Axis(centre, low, high, scale, self.source)

    @property
    def enlarges(self) -> bool:
        return self.source <= self.centre.shape[1]

    def weights(self) -> Tensor:
        """Interpolation matrices: (B, target, source), rows sum to 1.

        The weights of ``torch.nn.functional.interpolate(mode="bilinear", antialias=True)``: a triangle as wide as one
        pixel of the coarser grid, cut at ``low`` and ``high``.
        """
        pixel = torch.arange(self.source, dtype=self.centre.dtype, device=self.centre.device) + 0.5
        distance = (pixel - self.centre[:, :, None]).abs_()
        if self.enlarges:  # two neighbours, whose weights sum to 1 because centres stay inside
            return torch.rsub(distance, 1).relu_()
        weights = torch.rsub(distance.div_(self.scale.clamp(min=1)[:, None, None]), 1).relu_()
        weights *= ((pixel > self.low[:, None]) & (pixel < self.high[:, None]))[:, None]
        return weights.div_(weights.sum(dim=2, keepdim=True))

    def taps(self) -> tuple[Tensor, Tensor]:
        """The same as :meth:`weights` of an axis that enlarges, without the zeros.

        Returns:
            int64 and floating point (B, target, 2): the source pixels that count, and their weights. A tap outside of
            the source is that at its edge, with a weight of 0.
        """
        place = self.centre - 0.5
        first = place.floor()
        share = place - first
        pixel = torch.stack([first, first + 1], dim=2)
        return pixel.to(torch.int64).clamp_(max=self.source - 1), torch.stack([1 - share, share], dim=2)


def axis(start: Tensor, length: Tensor, flip: Tensor | None, source: int, target: int, beyond: bool = False) -> Axis:
    """The axis of a crop [start, start + length) that is resized to ``target`` pixels.

    Args:
        start, length: of the crop, in source pixels, floating point (B,).
        flip: bool (B,), mirror the result.
        source, target: pixels before and after.
        beyond: let pixels outside the crop count (those of the image do, then): a resize before a crop.
    """
    grid = torch.arange(target, dtype=start.dtype, device=start.device) + 0.5
    if flip is not None:
        grid = torch.where(flip[:, None], target - grid, grid)
    scale = length / target
    centre = torch.addcmul(start[:, None], grid, scale[:, None])
    low, high = start, start + length
    if beyond:
        low, high = torch.zeros_like(start), torch.full_like(start, source)
    if source <= target:
        centre = torch.minimum(torch.maximum(centre, low[:, None] + 0.5), high[:, None] - 0.5)
    return Axis(centre, low, high, scale, source)


def separable(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Each image's own linear map along either axis: (B, C, H, W) to (B, C, h, w).

    Args:
        x: floating point (B, C, H, W).
        down: (B, h, H), what makes a row of the result out of rows of ``x``.
        across: (B, w, W), the same for columns.
    """
    rows, channels, height, width = x.shape
    x = torch.bmm(x.reshape(rows, channels * height, width), across.transpose(1, 2))
    x = x.view(rows * channels, height, across.shape[1])
    if channels > 1:
        down = down[:, None].expand(-1, channels, -1, -1).reshape(rows * channels, *down.shape[1:])
    return torch.bmm(down, x).view(rows, channels, down.shape[1], across.shape[1])


def axes(
    box: Tensor, flip: Tensor | None, source: tuple[int, int], size: tuple[int, int], beyond: bool = False
) -> tuple[Axis, Axis]:
    """Down and across, for crops that are mirrored left and right where ``flip`` says, and resized.

    Args:
        box: (B, 4) top, left, height, width in pixels, inside the image.
        flip: bool (B,); None for none.
        source, size: height and width before and after.
        beyond: as in :func:`axis`.
    """
    top, left, tall, wide = box.to(torch.float64).unbind(1)
    return axis(top, tall, None, source[0], size[0], beyond), axis(left, wide, flip, source[1], size[1], beyond)


def resample(image: Tensor, down: Axis, across: Axis) -> Tensor:
    """Crop, flip and resize each image, as its two axes say: (B, C, h, w) in [0, 1] up to rounding.

    Equals ``torchvision.transforms.v2.functional.resized_crop(antialias=True)`` of the image in floating point, then
    ``horizontal_flip`` where drawn, to 1e-5 in float32 (to 2e-4 for images that go through ``grid_sample``).

    Args:
        image: uint8 (B, C, H, W).
        down, across: from :func:`axes`, on the device of ``image``, in the dtype to compute in.
    """
    dtype, size = down.centre.dtype, (down.centre.shape[1], across.centre.shape[1])
    x = image.to(dtype)
    if down.enlarges and across.enlarges and size[0] * size[1] >= _LARGE**2:
        columns, rows = across.centre * (2 / across.source) - 1, down.centre * (2 / down.source) - 1
        # An outer sum of complex numbers writes the pairs in one pass, in place of two that skip every other number.
        grid = torch.view_as_real(torch.complex(columns, torch.zeros_like(columns))[:, None] + 1j * rows[:, :, None])
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False).mul_(1 / 255)
    return separable(x, down.weights().mul_(1 / 255), across.weights())


def sampler(image: Tensor, source: Tensor, down: Axis, across: Axis) -> Callable[[slice], Tensor]:
    """:func:`resample` of some images, any of them any number of times, a few results at a time.

    A CPU that enlarges small images mixes rows of pixels two by two, where ``resample`` would multiply with matrices of
    two numbers other than 0 a row.

    Args:
        image: uint8 (N, C, H, W).
        source: int64 (B,), on the device of ``image``: which image each result is made of.
        down, across: of B results, as for :func:`resample`.

    Returns:
        What makes the results of adjacent places: (rows, C, h, w) in [0, 1] up to rounding.
    """
    channels, height, width = image.shape[1:]
    size = (down.centre.shape[1], across.centre.shape[1])
    if image.device.type != "cpu" or not (down.enlarges and across.enlarges) or size[0] * size[1] >= _LARGE**2:
        return lambda rows: resample(image.index_select(0, source[rows]), down[rows], across[rows])
    table = image.to(down.centre.dtype, memory_format=torch.contiguous_format).view(-1, width)
    pixel, weight = down.taps()
    plane = (source[:, None] * channels + torch.arange(channels)).to(torch.int32)
    pixel = pixel.to(torch.int32)[:, None] + height * plane[:, :, None, None]
    weight = weight.mul_(1 / 255)[:, None].expand_as(pixel)

    def some(rows: slice) -> Tensor:
        pixels, weights = (part[rows].reshape(-1, 2) for part in (pixel, weight))
        tall = F.embedding_bag(pixels, table, mode="sum", per_sample_weights=weights)
        right = across[rows].weights().transpose(1, 2)
        return torch.bmm(tall.view(len(right), -1, width), right).view(len(right), channels, *size)

    return some
