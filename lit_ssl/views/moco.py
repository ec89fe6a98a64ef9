"""MoCo's views: two of one recipe, weaker in colour than SimCLR's."""

from __future__ import annotations

from dataclasses import dataclass

from .simclr import SimCLRViews

__all__ = ["MoCoViews"]


@dataclass(frozen=True)
class MoCoViews(SimCLRViews):
    """Two views of each image as MoCo v2 makes them: crops from 20 % of the area, milder colours.

    Source: Chen et al. 2020, arXiv:2003.04297, and the authors' ``main_moco.py --aug-plus``. MoCo v3 (arXiv:2104.02057)
    uses BYOL's asymmetric pair: :class:`lit_ssl.views.BYOLViews`.

    Args:
        strength: multiplies ``colour``; 1 at any size.
        scale, ratio, flip, jitter, colour, grayscale, blur, sigma: as in :class:`lit_ssl.views.SimCLRViews`.
    """

    strength: float | None = 1.0
    scale: tuple[float, float] = (0.2, 1.0)
    colour: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
