"""What an argument may be. Every error names the argument, its value and what is allowed."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "check_choice",
    "check_flag",
    "check_folder",
    "check_integer",
    "check_interval",
    "check_number",
    "check_numbers",
    "check_options",
    "check_positive",
    "check_share",
]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_integer(name: str, value: Any, least: int = 1, *, optional: bool = False) -> None:
    """Raises ValueError unless ``value`` is an integer of at least ``least`` (or None, where that is allowed)."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        allowed = f"an integer of at least {least}{' or None' if optional else ''}"
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_positive(name: str, value: Any, *, zero: bool = False) -> None:
    """Raises ValueError unless ``value`` is a finite number above 0 (or 0, where that is allowed)."""
    if not _is_number(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be a finite number {'of at least' if zero else 'above'} 0, got {value!r}")


def check_number(name: str, value: Any, low: float = 0.0, high: float = 1.0) -> float:
    """``value`` as a float in [low, high], else ValueError."""
    if not _is_number(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def check_share(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a number above 0 and below 1."""
    if check_number(name, value) in (0, 1):
        raise ValueError(f"{name} must be above 0 and below 1, got {value!r}")


def check_numbers(name: str, value: Any, highs: Sequence[float]) -> tuple[float, ...]:
    """``value`` as a tuple of floats, each from 0 to its own bound, else ValueError."""
    if not isinstance(value, (tuple, list)) or len(value) != len(highs):
        raise ValueError(f"{name} must be {len(highs)} numbers, got {value!r}")
    return tuple(
        check_number(f"{name}[{i}]", v, 0.0, high) for i, (v, high) in enumerate(zip(value, highs, strict=True))
    )


def check_interval(name: str, value: Any, high: float) -> tuple[float, float]:
    """``value`` as (least, greatest), both above 0 and at most ``high``, else ValueError."""
    numbers = isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_number, value))
    if not numbers or not 0 < value[0] <= value[1] <= high:
        bound = f" <= {high:g}" if math.isfinite(high) else ""
        raise ValueError(f"{name} must be (least, greatest) with 0 < least <= greatest{bound}, got {value!r}")
    return float(value[0]), float(value[1])


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def check_folder(name: str, value: str | os.PathLike[str]) -> Path:
    """A path of this machine, ``~`` written out.

    Raises:
        ValueError: it is a URL, which would become a folder of that name.
    """
    text = os.fspath(value)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/(?!$)", text) and not re.match(r"[A-Za-z]:", os.path.splitdrive(text)[0]):
        raise ValueError(f"{name} must be a path of this machine, got the URL {text!r}: copy or mount it first")
    return Path(text).expanduser()


def check_options(name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a dict whose keys are names, or None."""
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise ValueError(f"{name} must be a dict of names and values or None, got {value!r}")
