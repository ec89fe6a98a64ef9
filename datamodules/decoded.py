"""What data modules share whose images are decoded from files when they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from lit_ssl.checks import check_integer
from lit_ssl.spec import ImageSpec
from lit_ssl.views import View

from .module import ImageDataModule

__all__ = ["HELD_OUT_NAMES", "DecodedImages", "held_out"]

# ImageNet's RGB statistics, and their mean for gray, as timm takes it for models of one channel.
_MEAN: dict[int, tuple[float, ...]] = {1: (0.449,), 3: (0.485, 0.456, 0.406), 4: (0.485, 0.456, 0.406, 0.5)}
_STD: dict[int, tuple[float, ...]] = {1: (0.226,), 3: (0.229, 0.224, 0.225), 4: (0.229, 0.224, 0.225, 0.5)}

HELD_OUT_NAMES = ("val", "valid", "validation", "test", "eval", "dev", "holdout", "heldout")
"""What held-out splits are called, in any case, in the order of preference."""


def held_out(names: Sequence[str], fraction: float) -> set[str]:
    """The share of ``names`` with the smallest hashes, at least one and never all; nothing where ``fraction`` is 0.

    The same in every run and on every machine; adding names hardly changes it.
    """
    count = min(max(1, round(fraction * len(names))) if fraction else 0, len(names) - 1)
    return set(sorted(names, key=lambda name: hashlib.blake2b(os.fsencode(name)).digest())[:count])


class DecodedImages(ImageDataModule):
    """Base of data modules that decode files, by several processes: see :class:`~lit_ssl.datamodules.ImageFolder`.

    Args:
        root, batch_size, num_workers, seed, views, image_size: see :class:`ImageDataModule`.
        load_size, channels, clean_images, val_fraction, max_corrupt, mean, std: see
            :class:`~lit_ssl.datamodules.ImageFolder`.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        num_workers: int | None,
        seed: int | None,
        views: View | None,
        image_size: int | tuple[int, int] | None,
        *,
        load_size: int | None,
        channels: int,
        clean_images: bool,
        val_fraction: float,
        max_corrupt: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__(root, batch_size, num_workers, seed, views, image_size)
        if channels not in _MEAN:
            raise ValueError(f"channels must be 1 (gray), 3 (RGB) or 4 (RGBA), got {channels!r}")
        if isinstance(val_fraction, bool) or not isinstance(val_fraction, int | float) or not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be from 0 to below 1, got {val_fraction!r}")
        check_integer("max_corrupt", max_corrupt, 0)
        check_integer("load_size", load_size, optional=True)
        self.spec = ImageSpec(
            self.image_size or 224,
            channels,
            _MEAN[channels] if mean is None else tuple(mean),
            _STD[channels] if std is None else tuple(std),
        )
        self.load_size = load_size or round(max(self.spec.height, self.spec.width) * 8 / 7)
        if not isinstance(clean_images, bool):
            raise ValueError(f"clean_images must be True or False, got {clean_images!r}")
        self.clean_images = clean_images
        self.val_fraction = val_fraction
        self.max_corrupt = max_corrupt
        self.bad: list[str] = []  # what was left out while loading, and why

    def default_workers(self) -> int:
        local = self.trainer.num_devices if self.trainer is not None else 1
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(cores, 8) // local)
