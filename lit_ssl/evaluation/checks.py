"""What every evaluation asks of its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_features", "labelled"]


def check_features(name: str, x: Tensor) -> None:
    """Raises ValueError unless ``x`` is a finite floating-point (N, D) tensor with rows."""
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point() or 0 in x.shape:
        shape = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a floating-point tensor of shape (N, D) with N and D at least 1, got {shape}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} must be finite, but some features are nan or infinite: the encoder has diverged")


def labelled(name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of ``x`` that have a label (0 or more; -1 is none), and their labels, as int64 on the device of ``x``.

    Raises:
        ValueError: features that are not (N, D) or not finite, labels that are not N integers, or no label at all.
    """
    check_features(f"{name}_x", x)
    if not isinstance(y, Tensor) or y.shape != x.shape[:1] or y.is_floating_point() or y.dtype == torch.bool:
        shape = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{name}_y must be an integer tensor of shape ({x.shape[0]},), got {shape}")
    y = y.to(x.device, torch.int64)
    known = y >= 0
    if not bool(known.any()):
        raise ValueError(f"{name}_y must hold at least one label of 0 or more, got none (-1 stands for no label)")
    return (x, y) if bool(known.all()) else (x[known], y[known])
