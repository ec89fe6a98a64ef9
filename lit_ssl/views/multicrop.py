"""Multi-crop: two views of much of the image, and several small ones of little of it."""

from __future__ import annotations

from dataclasses import dataclass

from lit_ssl.checks import check_interval, check_numbers
from lit_ssl.spec import ImageSpec

from .augment import Recipe, is_small
from .groups import Group, RecipeViews

__all__ = ["MultiCropViews"]


@dataclass(frozen=True)
class MultiCropViews(RecipeViews):
    """Two global and several local views of each image; the global ones come first.

    Source: Caron et al. 2020 (SwAV), arXiv:2006.09882, Section 3.3; recipe and defaults of DINO (Caron et al. 2021,
    arXiv:2104.14294, ``main_dino.py``). The first global view draws as BYOL's first, the second as BYOL's second.

    Args:
        local_views: number of local views, 0 or more.
        local_size: height and width of the local views in pixels, one integer for a square. Default: 3/7 of the
            method's size, which is 96 at 224. A ViT's patches must divide it.
        global_scale, local_scale: least and greatest area of the crops, as fractions of the image's.
        ratio, flip, jitter, colour, grayscale, sigma: as in :class:`lit_ssl.views.SimCLRViews`, for all views.
        blur: probability in the first global, the second global and the local views. Default: (1, 0.1, 0.5), and none
            where the method's size is at most 64 pixels.
        solarize: probability in the first global, the second global and the local views.

    Raises:
        ValueError: an argument is outside of what it may be; the message says which and what.
    """

    local_views: int = 8
    local_size: int | tuple[int, int] | None = None
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    colour: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grayscale: float = 0.2
    blur: tuple[float, float, float] | None = None
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: tuple[float, float, float] = (0.0, 0.2, 0.0)

    def __post_init__(self) -> None:
        count, size = self.local_views, self.local_size
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"local_views must be an integer of at least 0, got {count!r}")
        pair = (size, size) if isinstance(size, int) and not isinstance(size, bool) else size
        whole = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(s, int) and s >= 1 for s in pair)
        if pair is not None and not whole:
            raise ValueError(f"local_size must be one or two integers of at least 1, or None, got {size!r}")
        check_interval("global_scale", self.global_scale, 1.0)
        check_interval("local_scale", self.local_scale, 1.0)
        check_numbers("solarize", self.solarize, (1.0,) * 3)
        if self.blur is not None:
            check_numbers("blur", self.blur, (1.0,) * 3)
        self.recipes(small=False)

    def recipes(self, small: bool) -> list[Recipe]:
        """What may happen to the first global, the second global and each local view."""
        blur = self.blur if self.blur is not None else ((0.0,) * 3 if small else (1.0, 0.1, 0.5))
        return [
            Recipe(
                scale=scale,
                ratio=self.ratio,
                flip=self.flip,
                jitter=self.jitter,
                colour=self.colour,
                grayscale=self.grayscale,
                blur=blur[view],
                sigma=self.sigma,
                solarize=self.solarize[view],
            )
            for view, scale in enumerate((self.global_scale, self.global_scale, self.local_scale))
        ]

    def _local(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.local_size is None:
            return max(1, round(size[0] * 3 / 7)), max(1, round(size[1] * 3 / 7))
        if isinstance(self.local_size, int):
            return self.local_size, self.local_size
        return self.local_size[0], self.local_size[1]

    def groups(self, spec: ImageSpec) -> tuple[Group, ...]:
        """Two views of ``spec.size``, and ``local_views`` smaller ones."""
        *both, local = self.recipes(is_small(spec.size))
        groups = (
            Group("global", tuple(both), spec.size),
            Group("local", (local,) * self.local_views, self._local(spec.size)),
        )
        return groups if self.local_views else groups[:1]
