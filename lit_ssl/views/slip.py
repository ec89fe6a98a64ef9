"""SLIP's views: one for the caption, two of SimCLR's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_ssl.checks import check_interval, check_number
from lit_ssl.spec import ImageSpec

from .augment import Recipe, augment, is_small
from .simclr import SimCLRViews

__all__ = ["SLIPViews"]


@dataclass(frozen=True)
class SLIPViews(SimCLRViews):
    """Three views of each image: a light crop, whose caption still holds, and then two of SimCLR's.

    Source: Mu et al. 2021, arXiv:2112.12750, section 3.3, and the authors' code. The three are drawn from one stream of
    numbers and made in one resample. The light crop is not flipped: captions may speak of left and right.

    Args:
        caption_scale: least and greatest area of the first view's crop, as fractions of the image's.
        caption_flip: probability of a horizontal flip of the first view.
        strength, scale, ratio, flip, jitter, colour, grayscale, blur, sigma: of the other two views, as in
            :class:`lit_ssl.views.SimCLRViews`; ``ratio`` is the first one's too.

    Raises:
        ValueError: an argument is outside of what it may be; the message says which and what.
    """

    strength: float | None = 1.0
    colour: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    caption_scale: tuple[float, float] = (0.5, 1.0)
    caption_flip: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_interval("caption_scale", self.caption_scale, 1.0)
        check_number("caption_flip", self.caption_flip)

    def __call__(self, image: Tensor, key: Tensor, spec: ImageSpec, dtype: torch.dtype) -> list[Tensor]:
        """Three tensors (B, C, *spec.size) in [0, 1]; see :class:`lit_ssl.views.View`."""
        caption = Recipe(scale=self.caption_scale, ratio=self.ratio, flip=self.caption_flip)
        recipes = [caption, *[self.recipe(is_small(spec.size))] * 2]
        return augment(image, key, recipes, spec.size, dtype)
