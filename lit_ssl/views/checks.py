"""What the arguments of a view may be. Every error names the argument, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["check_interval", "check_number", "check_numbers"]


def check_number(name: str, value: Any, low: float = 0.0, high: float = 1.0) -> float:
    """``value`` as a float in [low, high]."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def check_numbers(name: str, value: Any, highs: Sequence[float]) -> tuple[float, ...]:
    """``value`` as a tuple of floats, each from 0 to its own bound."""
    if not isinstance(value, (tuple, list)) or len(value) != len(highs):
        raise ValueError(f"{name} must be {len(highs)} numbers, got {value!r}")
    return tuple(
        check_number(f"{name}[{i}]", v, 0.0, high) for i, (v, high) in enumerate(zip(value, highs, strict=True))
    )


def check_interval(name: str, value: Any, high: float) -> tuple[float, float]:
    """``value`` as (least, greatest), both above 0 and at most ``high``."""
    numbers = isinstance(value, (tuple, list)) and len(value) == 2
    numbers = numbers and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    if not numbers or not 0 < value[0] <= value[1] <= high:
        bound = f" <= {high:g}" if math.isfinite(high) else ""
        raise ValueError(f"{name} must be (least, greatest) with 0 < least <= greatest{bound}, got {value!r}")
    return float(value[0]), float(value[1])
