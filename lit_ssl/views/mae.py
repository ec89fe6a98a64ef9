"""The masked autoencoder's view: a crop, no colours."""

from __future__ import annotations

from dataclasses import dataclass

from lit_ssl.spec import ImageSpec

from .augment import Recipe
from .groups import Group, RecipeViews

__all__ = ["MAEViews"]


@dataclass(frozen=True)
class MAEViews(RecipeViews):
    """One view of each image: a random resized crop and a flip.

    Source: He et al. 2021, arXiv:2111.06377, Appendix A.1 and the authors' ``main_pretrain.py`` (which resizes
    bicubically; here it is bilinear with antialiasing, as everywhere in this package).

    Args:
        scale, ratio, flip: as in :class:`lit_ssl.views.SimCLRViews`.

    Raises:
        ValueError: an argument is outside of what it may be; the message says which and what.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        self.recipe()

    def recipe(self) -> Recipe:
        """What may happen to the view."""
        return Recipe(scale=self.scale, ratio=self.ratio, flip=self.flip)

    def groups(self, spec: ImageSpec) -> tuple[Group, ...]:
        """One view of ``spec.size``."""
        return (Group("view", (self.recipe(),), spec.size),)
