"""SLIP's views: one for the caption, two of SimCLR's."""

from __future__ import annotations

from dataclasses import dataclass

from lit_ssl.checks import check_interval, check_number
from lit_ssl.spec import ImageSpec

from .augment import Recipe, is_small
from .groups import Group
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

    def groups(self, spec: ImageSpec) -> tuple[Group, ...]:
        """Three views of ``spec.size``."""
        caption = Recipe(scale=self.caption_scale, ratio=self.ratio, flip=self.caption_flip)
        other = self.recipe(is_small(spec.size))
        return (Group("view", (caption, other, other), spec.size),)
