"""The image itself, at the size that a method was built for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_ssl.checks import check_number
from lit_ssl.random import bernoulli
from lit_ssl.spec import ImageSpec

from .batch import View
from .geometry import axes, resample
from .rows import chosen

__all__ = ["SingleView", "clean"]


@torch.no_grad()
def clean(image: Tensor, spec: ImageSpec, dtype: torch.dtype = torch.float32) -> Tensor:
    """The evaluation view: (B, C, *spec.size) in [0, 1], no randomness.

    An image of the spec's size is only divided by 255. Any other is scaled, antialiased and with its aspect kept, until
    it just covers the spec's size, and cropped at its centre; both in one resample.

    Args:
        image: uint8 (B, C, H, W).
        spec: gives the size.
        dtype: of the result. Pixels are computed in float32, or in float64 where ``dtype`` is that.
    """
    compute = torch.promote_types(dtype, torch.float32)
    height, width = image.shape[2:]
    if (height, width) == spec.size:
        return (image.to(compute) / 255).to(dtype)
    ratio = min(height / spec.height, width / spec.width)
    tall, wide = spec.height * ratio, spec.width * ratio
    box = torch.tensor([[(height - tall) / 2, (width - wide) / 2, tall, wide]], dtype=torch.float64)
    down, across = axes(box.expand(len(image), 4), None, (height, width), (spec.height, spec.width), beyond=True)
    with torch.autocast(image.device.type, enabled=False):
        x = resample(image, down.to(compute, image.device), across.to(compute, image.device))
        return x.clamp_(0, 1).to(dtype)


@dataclass(frozen=True)
class SingleView(View):
    """One view of each image: the evaluation view (:func:`lit_ssl.views.clean`), flipped if that is asked for.

    Args:
        flip: probability of a horizontal flip; none by default.

    Raises:
        ValueError: ``flip`` is no probability.
    """

    flip: float = 0.0

    def __post_init__(self) -> None:
        check_number("flip", self.flip)

    def __call__(self, image: Tensor, key: Tensor, spec: ImageSpec, dtype: torch.dtype) -> list[Tensor]:
        """One tensor (B, C, *spec.size) in [0, 1]; see :class:`lit_ssl.views.View`."""
        view = clean(image, spec, dtype)
        if (rows := chosen(bernoulli(key, "view/flip", self.flip).tolist(), image.device)) is not None:
            view[rows] = view[rows].flip(3)
        return [view]
