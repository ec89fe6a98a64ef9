"""Views of a batch on a CPU by compiled loops, which take a half to a third of the time of torch's operators."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

__all__ = ["available", "fused"]


@cache
def _kernels() -> ModuleType | None:
    if find_spec("numba") is None:
        return None
    try:
        from . import kernels
    except ImportError as error:  # numba does not know this NumPy, say
        warnings.warn(f"numba cannot be used, so views on a CPU take their time: {error}", stacklevel=2)
        return None
    return kernels


def available() -> bool:
    """Whether numba is there (the extra of that name)."""
    return _kernels() is not None


def fused(image: Tensor, draws: Sequence[Tensor], count: int, size: tuple[int, int], radius: int) -> list[Tensor]:
    """Makes views, on as many threads as torch uses.

    Args:
        image: uint8 (B, C, H, W), which all views show, or (count * B, C, H, W), first what all of the first view show.
        draws: what happens to each of count * B rows: the fields of ``Draws``.
        count: how many views, of B rows each.
        size: height and width of the views.
        radius: of the blur's kernel.

    Returns:
        As many tensors as views, float32 (B, C, *size). They do not share memory: what a large tensor would take from
        the system anew for every batch, small ones find among what the last batch's have left.
    """
    kernels = _kernels()
    assert kernels is not None, "of those who ask before whether it is available"
    arrays = [np.ascontiguousarray(part.numpy()) for part in draws]
    pixels, rows = image.contiguous().numpy(), len(arrays[0]) // count
    views = [image.new_empty((rows, image.shape[1], *size), dtype=torch.float32) for _ in range(count)]
    threads = max(1, min(torch.get_num_threads(), rows))
    share = -(-rows // threads)

    def some(place: tuple[int, int]) -> None:
        view, begin = place
        end, before = min(begin + share, rows), view * rows
        shown = before if len(pixels) > rows else 0
        part = [array[before + begin : before + end] for array in arrays]
        kernels.make(views[view].numpy()[begin:end], pixels[shown + begin : shown + end], *part, radius)

    places = [(view, begin) for view in range(count) for begin in range(0, rows, share)]
    if threads == 1:
        for place in places:
            some(place)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, places))
    return views
