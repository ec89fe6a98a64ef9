"""Loops over the pixels of one view after another, compiled for the CPU at hand (by numba).

A view is cropped, coloured and blurred a few rows at a time, in the CPU's nearest cache, in float32. What comes out is
what ``geometry.resample``, ``colour.jitter`` and ``blur.gaussian_blur`` make, up to rounding. No view depends on
another: a sample's are the same bits in any batch and on any number of threads.

Constants stand here once more, because numba's cache on disk knows of changes of this file only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["make"]

Array: TypeAlias = npt.NDArray[Any]

_TILE = 2048  # pixels of a channel at a time: three channels fit into the nearest cache
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = _RED, _GREEN, _BLUE = (0.2989, 0.587, 0.114)
SIGMAS = 4.5


def _compiled(function: Callable[..., Any]) -> Any:
    """Compiled when first called, and kept on disk for the next process, if there is a place to write to."""
    # Arithmetic may be reordered, so that loops become vector instructions; pixels are never NaN.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    options["fastmath"] = {"reassoc", "contract", "nsz", "nnan", "ninf"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)


@_compiled
def _taps(source: int, target: int, flip: bool, first: Array, weight: Array) -> int:
    """What each pixel of a row of ``target`` is made of, as ``geometry.Axis`` has it.

    Args:
        source, target: pixels before and after.
        flip: mirror the result.
        first: (target,), for the first of the source's pixels.
        weight: (taps, target), for the weights of that and the following ones, and zeros.

    Returns:
        How many taps count, at least 2.
    """
    scale = source / target
    reach, most = max(scale, 1.0), 2
    weight[:] = 0
    for place in range(target):
        centre = (place + 0.5) * scale - 0.5
        low = max(0, math.floor(centre - reach) + 1)
        high = min(source, math.ceil(centre + reach))
        total = 0.0
        for pixel in range(low, high):
            total += reach - abs(pixel - centre)
        made = target - 1 - place if flip else place
        first[made] = low
        for pixel in range(low, high):
            weight[pixel - low, made] = (reach - abs(pixel - centre)) / total
        most = max(most, high - low)
    return most


@_compiled
def _down(line: Array, image: Array, first: int, last: int, left: int, wide: int, weight: Array, taps: int) -> None:
    """Weighted sum of the rows from ``first`` on, none further than ``last``, of one channel: line[:wide]."""
    begin, second, near, far = np.uint64(left), min(first + 1, last), weight[0], weight[1]  # unsigned: vectorised
    for x in range(wide):
        at = begin + np.uint64(x)
        line[x] = near * np.float32(image[first, at]) + far * np.float32(image[second, at])
    for tap in range(2, taps):
        row, share = min(first + tap, last), weight[tap]
        for x in range(wide):
            line[x] += share * np.float32(image[row, begin + np.uint64(x)])


@_compiled
def _across(tile: Array, begin: int, lines: Array, first: Array, weight: Array, taps: int) -> None:
    """Resizes a row of all channels: tile[:, begin:] of lines (C, W). One loop for three takes half the time."""
    to = np.uint64(begin)
    if len(tile) == 3:
        for x in range(len(first)):
            i, j, at = first[x], first[x] + np.uint32(1), to + np.uint64(x)
            near, far = weight[0, x], weight[1, x]
            tile[0, at] = near * lines[0, i] + far * lines[0, j]
            tile[1, at] = near * lines[1, i] + far * lines[1, j]
            tile[2, at] = near * lines[2, i] + far * lines[2, j]
        for tap in range(2, taps):
            for x in range(len(first)):
                i, at, share = first[x] + np.uint32(tap), to + np.uint64(x), weight[tap, x]
                tile[0, at] += share * lines[0, i]
                tile[1, at] += share * lines[1, i]
                tile[2, at] += share * lines[2, i]
        return
    for channel in range(len(tile)):
        row, line = tile[channel, begin : begin + len(first)], lines[channel]
        row[:] = 0
        for tap in range(taps):
            for x in range(len(first)):
                row[x] += weight[tap, x] * line[first[x] + np.uint32(tap)]


@_compiled
def _scaled(out: Array, x: Array, share: np.float32) -> None:
    for i in range(len(out)):
        out[i] = share * x[i]


@_compiled
def _pixels(tile: Array, picture: Array, begin: int, rows: int) -> None:
    """Rows of a picture that is neither cropped nor resized."""
    width = picture.shape[2]
    for channel in range(len(tile)):
        for row in range(rows):
            to = tile[channel, row * width : (row + 1) * width]
            _scaled(to, picture[channel, begin + row], np.float32(1 / 255))


@_compiled
def _affine(x: Array, factor: float, offset: float) -> None:
    zero, one, factor32, offset32 = np.float32(0), np.float32(1), np.float32(factor), np.float32(offset)
    for i in range(len(x)):
        x[i] = min(max(x[i] * factor32 + offset32, zero), one)


@_compiled
def _saturate(r: Array, g: Array, b: Array, factor: float) -> None:
    zero, one, keep, rest = np.float32(0), np.float32(1), np.float32(factor), 1 - factor
    red, green, blue = np.float32(rest * _RED), np.float32(rest * _GREEN), np.float32(rest * _BLUE)
    for i in range(len(r)):
        gray = red * r[i] + green * g[i] + blue * b[i]
        r[i] = min(max(r[i] * keep + gray, zero), one)
        g[i] = min(max(g[i] * keep + gray, zero), one)
        b[i] = min(max(b[i] * keep + gray, zero), one)


@_compiled
def _turn(r: Array, g: Array, b: Array, turn: float) -> None:
    """Turns the hue; see ``colour.turns``."""
    weight = np.empty(4, np.float32)
    for apart in range(3):
        weight[apart] = min(max(3 - 2 * abs((6 * turn + 2 * apart + 3) % 6 - 3), -1.0), 1.0)
    weight[3] = (1 - weight[0] - weight[1] - weight[2]) / 2
    own, right, left, share = weight[0], weight[1], weight[2], weight[3]
    for i in range(len(r)):
        x, y, z = r[i], g[i], b[i]
        high, low = max(max(x, y), z), min(min(x, y), z)
        both = share * (high + low)
        r[i] = min(max(own * x + right * y + left * z + both, low), high)
        g[i] = min(max(left * x + own * y + right * z + both, low), high)
        b[i] = min(max(right * x + left * y + own * z + both, low), high)


@_compiled
def _grayscale(r: Array, g: Array, b: Array) -> None:
    red, green, blue = np.float32(_RED), np.float32(_GREEN), np.float32(_BLUE)
    for i in range(len(r)):
        gray = red * r[i] + green * g[i] + blue * b[i]
        r[i] = gray
        g[i] = gray
        b[i] = gray


@_compiled
def _jitter(tile: Array, n: int, factors: Array, order: Array, mean: float) -> None:
    """Some of the four operations, in their order, on tile[:, :n]; ``mean``: of the gray image before contrast."""
    for place in range(len(order)):
        kind = order[place]
        factor = factors[kind]
        if kind in (BRIGHTNESS, CONTRAST):
            for channel in range(len(tile)):
                _affine(tile[channel, :n], factor, (1 - factor) * mean if kind == CONTRAST else 0.0)
        elif len(tile) == 3 and kind == SATURATION:
            _saturate(tile[0, :n], tile[1, :n], tile[2, :n], factor)
        elif len(tile) == 3 and kind == HUE:
            _turn(tile[0, :n], tile[1, :n], tile[2, :n], factor)


@_compiled
def _sum(x: Array) -> np.float32:
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i]
    return total


@_compiled
def _gray_sum(tile: Array, n: int) -> float:
    """Of the gray image, see ``colour.gray``."""
    if len(tile) == 3:
        return _RED * _sum(tile[0, :n]) + _GREEN * _sum(tile[1, :n]) + _BLUE * _sum(tile[2, :n])
    total = 0.0
    for channel in range(len(tile)):
        total += _sum(tile[channel, :n]) / len(tile)
    return total


@_compiled
def _finish(out: Array, x: Array, solarize: bool) -> None:
    zero, one, half = np.float32(0), np.float32(1), np.float32(0.5)
    if solarize:
        for i in range(len(out)):
            value = min(max(x[i], zero), one)
            out[i] = one - value if value >= half else value
    else:
        for i in range(len(out)):
            out[i] = min(max(x[i], zero), one)


@_compiled
def _kernel(sigma: float, radius: int, weight: Array) -> None:
    """Weights of the taps 0 to ``radius`` on one side; zeros after them."""
    total = 1.0
    for tap in range(1, radius + 1):
        total += 2 * math.exp(-0.5 * (tap / sigma) ** 2)
    weight[:] = 0
    for tap in range(radius + 1):
        weight[tap] = math.exp(-0.5 * (tap / sigma) ** 2) / total


@_compiled
def _pairs(out: Array, a: Array, b: Array, c: Array, d: Array, near: np.float32, far: np.float32) -> None:
    for i in range(len(out)):
        out[i] += near * (a[i] + b[i]) + far * (c[i] + d[i])


@_compiled
def _convolve(out: Array, x: Array, begin: int, step: int, weight: Array, radius: int) -> None:
    """Weighted sums of what lies around x[begin + i], ``step`` apart, two pairs of taps at a time."""
    n = len(out)
    _scaled(out, x[begin : begin + n], weight[0])
    for tap in range(1, radius + 1, 2):
        near, far = tap * step, min(tap + 1, radius) * step
        a, b = x[begin - near : begin - near + n], x[begin + near : begin + near + n]
        c, d = x[begin - far : begin - far + n], x[begin + far : begin + far + n]
        _pairs(out, a, b, c, d, weight[tap], weight[tap + 1])


@_compiled
def _reflect(plane: Array, high: int, wide: int) -> None:
    """Fills the margins of one channel: ``high`` rows above and below, ``wide`` columns left and right."""
    bottom, right = len(plane) - high - 1, plane.shape[1] - wide - 1
    for y in range(high, bottom + 1):
        for tap in range(1, wide + 1):
            plane[y, wide - tap] = plane[y, wide + tap]
            plane[y, right + tap] = plane[y, right - tap]
    for tap in range(1, high + 1):
        plane[high - tap] = plane[high + tap]
        plane[bottom + tap] = plane[bottom - tap]


@_compiled
def _blur(out: Array, whole: Array, sigma: float, solarize: bool) -> None:
    """Blurs ``whole`` (C, h + 2 * margin, w + 2 * margin); margins are as wide as the kernel can be."""
    height, width = out.shape[1:]
    high, wide, line = (whole.shape[1] - height) // 2, (whole.shape[2] - width) // 2, whole.shape[2]
    radius = max(1, math.ceil(min(SIGMAS * sigma, high + wide + 1.0)))
    radius_down, radius_across = min(radius, high), min(radius, wide)
    down, across = np.empty(high + 2, np.float32), np.empty(wide + 2, np.float32)
    _kernel(sigma, radius_down, down)
    _kernel(sigma, radius_across, across)
    rows = max(1, min(height, _TILE // line))
    tall, made = np.empty(rows * line, np.float32), np.empty(rows * line, np.float32)
    for channel in range(len(whole)):
        _reflect(whole[channel], high, wide)
        flat = whole[channel].reshape(-1)
        for begin in range(0, height, rows):
            count = min(rows, height - begin)
            n = count * line
            _convolve(tall[:n], flat, (high + begin) * line, line, down, radius_down)
            _convolve(made[: n - 2 * wide], tall, wide, 1, across, radius_across)
            for row in range(count):
                _finish(out[channel, begin + row], made[row * line : row * line + width], solarize)


@_compiled
def _store(whole: Array, high: int, wide: int, begin: int, tile: Array, n: int, width: int) -> None:
    """Rows of a tile go where they belong in the whole view, which has margins."""
    for channel in range(len(tile)):
        for row in range(n // width):
            whole[channel, high + begin + row, wide : wide + width] = tile[channel, row * width : (row + 1) * width]


@_compiled
def _load(whole: Array, high: int, wide: int, begin: int, tile: Array, n: int, width: int) -> None:
    for channel in range(len(tile)):
        for row in range(n // width):
            tile[channel, row * width : (row + 1) * width] = whole[channel, high + begin + row, wide : wide + width]


@_compiled
def _close(
    out: Array,
    begin: int,
    tile: Array,
    n: int,
    gray: bool,
    blur: bool,
    solarize: bool,
    whole: Array,
    high: int,
    wide: int,
) -> None:
    """What comes after the jitter; a view that will be blurred waits in ``whole``."""
    width = out.shape[2]
    if gray and len(tile) == 3:
        _grayscale(tile[0, :n], tile[1, :n], tile[2, :n])
    if blur:
        _store(whole, high, wide, begin, tile, n, width)
        return
    for channel in range(len(tile)):
        _finish(out[channel, begin : begin + n // width].reshape(-1), tile[channel, :n], solarize)


@_compiled
def make(
    out: Array,
    image: Array,
    box: Array,
    flip: Array,
    jitter: Array,
    factors: Array,
    order: Array,
    gray: Array,
    blur: Array,
    sigma: Array,
    solarize: Array,
    radius: int,
) -> None:
    """Makes views.

    Args:
        out: float32 (B, C, h, w), contiguous, for the views, in [0, 1].
        image: uint8 (B, C, H, W), contiguous: what each view shows.
        box, flip, jitter, factors, order, gray, blur, sigma, solarize: of each view, as in ``Draws``.
        radius: of the blur's kernel.
    """
    count, channels, height, width = out.shape
    most = math.ceil(2 * max(1.0, image.shape[2] / height, image.shape[3] / width)) + 1
    first_down, first_across = np.empty(height, np.int64), np.empty(width, np.uint32)
    down, across = np.empty((height, most), np.float32), np.empty((most, width), np.float32)
    lines = np.zeros((channels, image.shape[3] + most), np.float32)
    rows, high, wide = max(1, min(height, _TILE // width)), min(radius, height - 1), min(radius, width - 1)
    tile = np.empty((channels, rows * width), np.float32)
    whole = np.empty((channels, height + 2 * high, width + 2 * wide), np.float32)
    for view in range(count):
        picture = image[view]
        top, left, tall, broad = box[view]
        taps_down = _taps(tall, height, False, first_down, down.T)
        taps_across = _taps(broad, width, flip[view], first_across, across)
        down *= np.float32(1 / 255)
        as_it_is = tall == image.shape[2] == height and broad == image.shape[3] == width and not flip[view]
        pause = 4  # the place of contrast, for which the mean of all pixels has to be known
        for place in range(4):
            if jitter[view] and order[view, place] == CONTRAST:
                pause = place
        mean = 0.0
        for begin in range(0, height, rows):
            n = min(rows, height - begin) * width
            if as_it_is:
                _pixels(tile, picture, begin, n // width)
            else:
                for row in range(n // width):
                    first, weight = top + first_down[begin + row], down[begin + row]
                    for channel in range(channels):
                        _down(lines[channel], picture[channel], first, top + tall - 1, left, broad, weight, taps_down)
                    _across(tile, row * width, lines, first_across, across, taps_across)
            if jitter[view]:
                _jitter(tile, n, factors[view], order[view, :pause], 0.0)
            if pause < 4:
                mean += _gray_sum(tile, n) / (height * width)
                _store(whole, high, wide, begin, tile, n, width)
            else:
                _close(out[view], begin, tile, n, gray[view], blur[view], solarize[view], whole, high, wide)
        if pause < 4:
            for begin in range(0, height, rows):
                n = min(rows, height - begin) * width
                _load(whole, high, wide, begin, tile, n, width)
                _jitter(tile, n, factors[view], order[view, pause:], mean)
                _close(out[view], begin, tile, n, gray[view], blur[view], solarize[view], whole, high, wide)
        if blur[view]:
            _blur(out[view], whole, sigma[view], solarize[view])
