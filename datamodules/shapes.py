"""Pictures of shapes, drawn by signed distances for a whole batch at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from lit_ssl.random import integers, uniform

__all__ = ["PALETTE", "draw"]

# All arithmetic below is +, -, *, / and square roots of one number each, which IEEE 754 rounds alike wherever they
# run: the same picture to the bit in any batch, process and machine. So no sine, no sum over pixels, no fused step.

PALETTE = torch.tensor(
    [
        (0.90, 0.10, 0.12),  # red
        (1.00, 0.55, 0.05),  # orange
        (0.98, 0.92, 0.20),  # yellow
        (0.12, 0.75, 0.22),  # green
        (0.15, 0.88, 0.92),  # cyan
        (0.12, 0.25, 0.95),  # blue
        (0.58, 0.15, 0.80),  # purple
        (1.00, 0.60, 0.82),  # pink
    ],
    dtype=torch.float32,
)
"""RGB in [0, 1], one row for each of ``COLOURS``; a picture's own differs by up to 0.05 a channel."""

# In pictures of 32 pixels: small objects have a radius of 2.2 pixels and large ones of 3.3, up to 6 % more or less,
# and four large ones with a gap of a pixel and a half between them just fit into a corner.
_RADII = torch.tensor([2.2, 3.3], dtype=torch.float32) / 32
_GAP = 1.5 / 32
_REACH = 1.1  # how far the farthest corner of a shape of radius 1 lies from its centre
_PLACES = torch.tensor([0.28, 0.5, 0.72], dtype=torch.float32)
_NEAR, _MIDDLE = 3**-0.5, 3**-0.5 / 2  # of an equilateral triangle of side 1: centre to corner, centre to side

# Offsets of the objects of a group, in distances between neighbours: (x, y) for one, two, three and four.
_LAYOUTS = torch.zeros(4, 4, 2, dtype=torch.float32)
_LAYOUTS[1, :2] = torch.tensor([(-0.5, 0.0), (0.5, 0.0)])
_LAYOUTS[2, :3] = torch.tensor([(0.0, -_NEAR), (-0.5, _MIDDLE), (0.5, _MIDDLE)])
_LAYOUTS[3] = torch.tensor([(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)])


def _length(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt()


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(y - 0.55, x.abs() * (0.75**0.5) - y * 0.5 - 0.55)


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    across, along = 0.7, 1.1
    return (x.abs() / across + y.abs() / along - 1) * (across * along / (across**2 + along**2) ** 0.5)


# Distance to the edge, below 0 inside, of each of `SHAPES`, of about radius 1; y points down.
_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: _length(x, y) - 0.95,
    "square": lambda x, y: _box(x, y, 0.78, 0.78),
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": lambda x, y: torch.minimum(_box(x, y, 1.05, 0.33), _box(x, y, 0.33, 1.05)),
    "ring": lambda x, y: (_length(x, y) - 0.78).abs() - 0.27,
    "bar": lambda x, y: _box(x, y, 1.04, 0.36),
    "crescent": lambda x, y: torch.maximum(_length(x, y) - 1, 0.85 - _length(x - 0.55, y)),
}


def draw(shown: Tensor, size: tuple[int, int], *, key: Tensor, seed: int) -> Tensor:
    """Pictures of combinations; what these leave open (exact place, turn, shade, background) is drawn by key.

    Row b is a pure function of ``shown[b]``, ``size``, ``key[b]`` and ``seed``.

    Args:
        shown: int64 (B, 5), rows as :class:`~lit_ssl.datamodules.grammar.Combination` has them.
        size: height and width in pixels; shapes lie in the central square.
        key: int64 (B,), of each picture.
        seed: of the grain that all pictures share.

    Returns:
        uint8 (B, 3, H, W).
    """
    shape, colour, large, position, quantity = shown.unbind(1)
    free = uniform(key, "shapes", (13,)).to(torch.float32) * 2 - 1  # each from -1 to 1
    radius = _RADII[large] * (1 + 0.06 * free[:, 0])
    centre = torch.stack([_PLACES[position % 3], _PLACES[position // 3]], 1) + 0.015 * free[:, 1:3]
    offset = _LAYOUTS[quantity] * (2 * _REACH * radius + _GAP)[:, None, None]
    quarters = integers(key, "shapes/turn", 4, (1,))
    offset = torch.stack(_turned(offset[:, :, 0], offset[:, :, 1], 0.06 * free[:, 3:4], quarters), 2)
    objects = centre[:, None] + offset  # (B, 4, 2)
    lean = 0.08 * (uniform(key, "shapes/lean", (4,)).to(torch.float32) * 2 - 1)

    # Each object of the batch covers a small window; a margin takes what of it lies outside of the picture.
    row, nth = (torch.arange(4) <= quantity[:, None]).nonzero().unbind(1)
    height, width = size
    side = min(size)
    shift = objects.new_tensor([(width - side) / 2, (height - side) / 2])
    centre, r = objects[row, nth] * side + shift, radius[row] * side
    window = math.ceil(2 * _REACH * 1.06 * float(_RADII[1]) * side) + 3
    margin = window // 2
    cell = (centre - window / 2).round()[:, :, None] + torch.arange(window)  # (M, 2, window)
    x, y = ((cell + 0.5 - centre[:, :, None]) / r[:, None, None]).unbind(1)
    x, y = _turned(x[:, None, :], y[:, :, None], lean[row, nth][:, None, None])
    covered = torch.empty_like(x)
    for kind, distance in enumerate(_DISTANCES.values()):
        mine = (shape[row] == kind).nonzero()[:, 0]
        covered[mine] = 0.5 - distance(x[mine], y[mine]) * r[mine, None, None]
    column, line = (cell.to(torch.int64) + margin).unbind(1)
    line = line + row[:, None] * (height + 2 * margin)
    place = line[:, :, None] * (width + 2 * margin) + column[:, None, :]
    coverage = covered.new_zeros(len(shown), 1, height + 2 * margin, width + 2 * margin)
    coverage.view(-1).index_add_(0, place.flatten(), covered.clamp_(0, 1).flatten())
    coverage = coverage[:, :, margin : margin + height, margin : margin + width].clamp(max=1)
    return _painted(coverage, PALETTE[colour], free[:, 4:], key, seed)


def _turned(x: Tensor, y: Tensor, half: Tensor, quarters: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(x, y) turned by an angle, of which the half's tangent is given, and by so many quarter turns."""
    square = half * half
    cos, sin = (1 - square) / (1 + square), 2 * half / (1 + square)
    if quarters is not None:
        c, s = half.new_tensor([1, 0, -1, 0])[quarters], half.new_tensor([0, 1, 0, -1])[quarters]
        cos, sin = c * cos - s * sin, s * cos + c * sin
    return x * cos - y * sin, x * sin + y * cos


def _painted(coverage: Tensor, colour: Tensor, free: Tensor, key: Tensor, seed: int) -> Tensor:
    """Objects in their colour on a dark gray background that is tinted, shaded and grainy."""
    height, width = coverage.shape[2:]
    ink = colour + 0.05 * free[:, 0:3]
    ground = 0.22 + 0.12 * free[:, 3:4] + 0.04 * free[:, 4:7]
    place = integers(key, "shapes/grain", _GRAIN, (2,))
    rows, columns = (place[:, :1] + torch.arange(height)) % _GRAIN, (place[:, 1:] + torch.arange(width)) % _GRAIN
    ramps = (torch.linspace(-0.06, 0.06, n, dtype=free.dtype) for n in (width, height))
    across, down = (free[:, 7 + i, None] * ramp for i, ramp in enumerate(ramps))
    shade = _grain(seed)[rows[:, :, None], columns[:, None, :]] + across[:, None, :] + down[:, :, None]
    pixels = coverage * ((ink - ground) * 255)[:, :, None, None]
    pixels += (ground * 255 + 0.5)[:, :, None, None]
    pixels += (shade * 255)[:, None]
    return pixels.clamp_(0, 255).to(torch.uint8)


_GRAIN = 128


@lru_cache(maxsize=8)
def _grain(seed: int) -> Tensor:
    """Noise of which every picture shows a window: a number for each pixel would cost more than all the rest."""
    return 0.04 * (uniform(torch.tensor([seed]), "shapes/grain", (_GRAIN, _GRAIN))[0].to(torch.float32) * 2 - 1)
