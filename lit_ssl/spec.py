"""What a method learns about its data: size, channels and the statistics that normalise a pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ImageSpec"]

_LONGEST = 32_768  # an image of more would be a mistake in the units


@dataclass(frozen=True, init=False)
class ImageSpec:
    """Shape and statistics of the images a method trains on.

    Args:
        size: height and width in pixels; one integer means a square.
        channels: number of channels, 1 or more.
        mean: one value per channel, in [0, 1] pixel units; default 0.5 for each channel.
        std: one positive value per channel, in [0, 1] pixel units; default 0.5 for each channel.

    Raises:
        ValueError: a size or channel count below 1, a side of more than 32,768 pixels, a statistic that is not finite,
            a standard deviation that is not positive, or a number of statistics that differs from ``channels``.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        size: int | tuple[int, int],
        channels: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(isinstance(s, int) and s >= 1 for s in sides):
            raise ValueError(f"size must be one or two integers of at least 1, got {size!r}")
        if max(sides) > _LONGEST:
            raise ValueError(f"size must be at most {_LONGEST:,} pixels a side, got {size!r}")
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"channels must be an integer of at least 1, got {channels!r}")
        object.__setattr__(self, "size", sides)
        object.__setattr__(self, "channels", channels)
        object.__setattr__(self, "mean", self._statistic("mean", mean))
        object.__setattr__(self, "std", self._statistic("std", std))

    def _statistic(self, name: str, values: Sequence[float] | None) -> tuple[float, ...]:
        if values is None:
            return (0.5,) * self.channels
        values = tuple(float(v) for v in values)
        if len(values) != self.channels:
            raise ValueError(f"{name} must hold one value per channel ({self.channels}), got {len(values)}: {values}")
        if not all(math.isfinite(v) and (name == "mean" or v > 0) for v in values):
            raise ValueError(f"{name} must be finite{'' if name == 'mean' else ' and positive'}, got {values}")
        return values

    @property
    def height(self) -> int:
        return self.size[0]

    @property
    def width(self) -> int:
        return self.size[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, as checkpoints store it."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def of(cls, value: ImageSpec | Mapping[str, Any]) -> ImageSpec:
        """``value`` itself, or the spec that :meth:`to_dict` wrote."""
        if isinstance(value, ImageSpec):
            return value
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
        return cls(**plain)
