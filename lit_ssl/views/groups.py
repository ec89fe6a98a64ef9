"""Views that are said by recipes, so that whoever decodes an image can crop them out of the whole of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_ssl.spec import ImageSpec

from .augment import Recipe, augment
from .batch import View

__all__ = ["Group", "RecipeViews", "groups_of"]


@dataclass(frozen=True)
class Group:
    """Views of one size, which draw from one stream of numbers.

    Args:
        name: of the stream.
        recipes: one a view.
        size: height and width of the views.
    """

    name: str
    recipes: tuple[Recipe, ...]
    size: tuple[int, int]


class RecipeViews(View):
    """Base of the views that crop, flip and resize first, and then only change colours: a subclass says its groups."""

    def groups(self, spec: ImageSpec) -> tuple[Group, ...]:
        """What is made of each image, in the order of the views."""
        raise NotImplementedError(f"{type(self).__name__} must define groups()")

    def __call__(
        self,
        image: Tensor,
        key: Tensor,
        spec: ImageSpec,
        dtype: torch.dtype,
        crops: Mapping[str, Tensor] | None = None,
    ) -> list[Tensor]:
        """Views in [0, 1], those of the first group first; see :class:`lit_ssl.views.View`.

        Args:
            image, key, spec, dtype: as there.
            crops: of each group by name, uint8 (V * B, C, h, w), first all of the first view, where a loader has
                cropped, flipped and resized already.
        """
        views = []
        for group in self.groups(spec):
            made = None if crops is None else crops[group.name]
            views += augment(image, key, group.recipes, group.size, dtype, group.name, made)
        return views


def groups_of(views: Any, spec: ImageSpec) -> tuple[Group, ...]:
    """What a loader may crop for ``views``; nothing where they are not, or not only, said by recipes."""
    if not isinstance(views, RecipeViews) or type(views).__call__ is not RecipeViews.__call__:
        return ()
    return views.groups(spec)
