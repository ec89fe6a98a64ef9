"""Views of a batch on a CPU by compiled loops: a few passes over memory in place of dozens."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

__all__ = ["available", "fused"]


@cache
def _make() -> Callable[..., None] | None:
    """Compiled, or found on disk; None without numba."""
    if find_spec("numba") is None:
        return None
    try:
        from numba import config

        from .kernels import make

        if config.DISABLE_JIT:  # type: ignore[attr-defined]
            return None
        no, numbers = np.zeros(1, bool), np.ones((1, 4))
        box, order = np.array([[0, 0, 1, 1]]), np.arange(4)[None]
        out, image = np.empty((1, 1, 1, 1), np.float32), np.zeros((1, 1, 1, 1), np.uint8)
        make(out, image, box, no, no, numbers, order, no, no, np.ones(1), no, 1)
    except Exception as error:  # numba does not know this NumPy, a library does not load, the disk is full, ...
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"numba is installed but fails, so torch makes the views, more slowly ({reason})", stacklevel=2)
        return None
    return make


def available() -> bool:
    """Whether numba (the extra of that name) is there and works. The first call compiles, or loads."""
    return _make() is not None


def fused(
    image: Tensor, draws: Sequence[Tensor], count: int, size: tuple[int, int], radius: int, *, own: bool = False
) -> list[Tensor]:
    """Makes views, on as many threads as torch uses.

    Args:
        image: uint8 (B, C, H, W), not empty, which all views show.
        draws: what happens to each of count * B rows: the fields of ``Draws``, in their order. Boxes lie in the image.
        count: how many views, of B rows each.
        size: height and width of the views.
        radius: of the blur's kernel.
        own: each view shows images of its own: ``image`` is (count * B, C, H, W), first those of the first view.

    Returns:
        As many tensors as views, float32 (B, C, *size). They do not share memory: what a large tensor would take from
        the system anew for every batch, small ones find among what the last batch's have left.
    """
    make = _make()
    assert make is not None, "of those who ask before whether it is available"
    arrays = [np.ascontiguousarray(part.numpy()) for part in draws]
    pixels, rows = image.contiguous().numpy(), len(image) // count if own else len(image)
    views = [image.new_empty((rows, image.shape[1], *size), dtype=torch.float32) for _ in range(count)]
    threads = min(torch.get_num_threads(), count * rows)
    share = -(-rows // -(-threads // count))  # rows of a view that one thread makes

    def some(place: tuple[int, int]) -> None:
        view, begin = place
        end, before = min(begin + share, rows), view * rows
        shown = before if own else 0
        part = [array[before + begin : before + end] for array in arrays]
        make(views[view].numpy()[begin:end], pixels[shown + begin : shown + end], *part, radius)

    places = [(view, begin) for view in range(count) for begin in range(0, rows, share)]
    if threads == 1:
        for place in places:
            some(place)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, places))
    return views
