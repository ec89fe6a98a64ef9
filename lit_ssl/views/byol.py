"""BYOL's views: an asymmetric pair."""

from __future__ import annotations

from dataclasses import dataclass

from lit_ssl.checks import check_numbers
from lit_ssl.spec import ImageSpec

from .augment import Recipe, is_small
from .groups import Group, RecipeViews

__all__ = ["BYOLViews"]


@dataclass(frozen=True)
class BYOLViews(RecipeViews):
    """Two views of each image, of which the first is blurred always and the second is sometimes solarized.

    Source: Grill et al. 2020, arXiv:2006.07733, Appendix B, Table 6. MoCo v3 and many others use the same pair.

    Args:
        scale, ratio, flip, jitter, colour, grayscale, sigma: as in :class:`lit_ssl.views.SimCLRViews`.
        blur: probability in the first and in the second view. Default: (1, 0.1), and none for views of at most 64
            pixels.
        solarize: probability in the first and in the second view; values of at least 0.5 are inverted.

    Raises:
        ValueError: an argument is outside of what it may be; the message says which and what.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    colour: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grayscale: float = 0.2
    blur: tuple[float, float] | None = None
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: tuple[float, float] = (0.0, 0.2)

    def __post_init__(self) -> None:
        check_numbers("solarize", self.solarize, (1.0, 1.0))
        if self.blur is not None:
            check_numbers("blur", self.blur, (1.0, 1.0))
        self.recipes(small=False)

    def recipes(self, small: bool) -> list[Recipe]:
        """What may happen to each view; ``small`` chooses the defaults for views of at most 64 pixels."""
        blur = self.blur if self.blur is not None else ((0.0, 0.0) if small else (1.0, 0.1))
        return [
            Recipe(
                scale=self.scale,
                ratio=self.ratio,
                flip=self.flip,
                jitter=self.jitter,
                colour=self.colour,
                grayscale=self.grayscale,
                blur=blur[view],
                sigma=self.sigma,
                solarize=self.solarize[view],
            )
            for view in range(2)
        ]

    def groups(self, spec: ImageSpec) -> tuple[Group, ...]:
        """Two views of ``spec.size``."""
        return (Group("view", tuple(self.recipes(is_small(spec.size))), spec.size),)
