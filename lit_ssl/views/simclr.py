"""SimCLR's views: two of one recipe."""

from __future__ import annotations

from dataclasses import dataclass

from lit_ssl.checks import check_number, check_numbers
from lit_ssl.spec import ImageSpec

from .augment import Recipe, is_small
from .groups import Group, RecipeViews

__all__ = ["SimCLRViews"]


@dataclass(frozen=True)
class SimCLRViews(RecipeViews):
    """Two views of each image: crop, flip, strong colour jitter, grayscale, blur.

    Source: Chen et al. 2020, arXiv:2002.05709, Appendix A; for small images its CIFAR recipe, Appendix B.9. Saturation,
    hue and grayscale act on RGB only.

    Args:
        strength: multiplies ``colour``. Default: 1, and 0.5 for views of at most 64 pixels (B.9).
        scale: least and greatest area of the crop, as fractions of the image's.
        ratio: least and greatest width / height of the crop.
        flip: probability of a horizontal flip.
        jitter: probability of the colour jitter.
        colour: ranges of brightness, contrast, saturation (factors from 1 - value to 1 + value) and hue (turns from
            -value to value), before ``strength``.
        grayscale: probability.
        blur: probability; the kernel is 10 % of the view's height. Default: 0.5, and 0 for views of at most 64 pixels
            (B.9).
        sigma: least and greatest width of the blur, in pixels.

    Raises:
        ValueError: an argument is outside of what it may be; the message says which and what.
    """

    strength: float | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    colour: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    grayscale: float = 0.2
    blur: float | None = None
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        colour = check_numbers("colour", self.colour, (float("inf"),) * 3 + (0.5,))
        if self.strength is not None:
            check_number("strength", self.strength, 0.0, 0.5 / max(colour[3], 1e-9))
        if self.blur is not None:
            check_number("blur", self.blur)
        self.recipe(small=False)

    def recipe(self, small: bool) -> Recipe:
        """What may happen to a view; ``small`` chooses the defaults for views of at most 64 pixels."""
        strength = self.strength if self.strength is not None else (0.5 if small else 1.0)
        blur = self.blur if self.blur is not None else (0.0 if small else 0.5)
        brightness, contrast, saturation, hue = (strength * value for value in self.colour)
        return Recipe(
            scale=self.scale,
            ratio=self.ratio,
            flip=self.flip,
            jitter=self.jitter,
            colour=(brightness, contrast, saturation, hue),
            grayscale=self.grayscale,
            blur=blur,
            sigma=self.sigma,
        )

    def groups(self, spec: ImageSpec) -> tuple[Group, ...]:
        """Two views of ``spec.size``."""
        return (Group("view", (self.recipe(is_small(spec.size)),) * 2, spec.size),)
