"""What the constructors of callbacks ask of their arguments."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["check_flag", "check_integer", "check_positive"]


def check_integer(name: str, value: Any, least: int = 1, *, optional: bool = False) -> None:
    """Raises ValueError unless ``value`` is an integer of at least ``least`` (or None, where that is allowed)."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        allowed = f"an integer of at least {least}{' or None' if optional else ''}"
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_positive(name: str, value: Any, *, zero: bool = False) -> None:
    """Raises ValueError unless ``value`` is a finite number above 0 (or 0, where that is allowed)."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be a finite number {'of at least' if zero else 'above'} 0, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
