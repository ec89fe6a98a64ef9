"""Colour operations on a batch of images in [0, 1], each image with its own strength.

Each equals ``torchvision.transforms.v2.functional``'s operation of the same name on floating-point images, up to
rounding (1e-5 in float32), clamps included. Channels: brightness, contrast and solarize act on any number of them;
saturation, hue and grayscale mean something for RGB only and leave images with another number of channels alone.

No comparison chooses between pixels here: ``torch.where`` on random masks costs a CPU twenty times an addition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import chosen

__all__ = [
    "Stages",
    "brightness",
    "contrast",
    "gray",
    "grayscale",
    "hue",
    "jitter",
    "luma",
    "saturation",
    "solarize",
    "stages",
]

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def luma(x: Tensor) -> Tensor:
    """The share of each channel in gray, on the device and in the dtype of ``x`` (B, C, h, w): (C,)."""
    channels = x.shape[1]
    return x.new_tensor(_LUMA if channels == 3 else (1 / channels,) * channels)


def gray(x: Tensor) -> Tensor:
    """(B, C, h, w) to (B, 1, h, w): the luma of RGB images, the mean of any other channels."""
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    red, green, blue = x.split(1, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """``factor * x``. x: (B, C, h, w); factor: (B,), not negative, 1 changes nothing."""
    return (x * factor.to(x)[:, None, None, None]).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean of the gray image. x: (B, C, h, w); factor: (B,), not negative, 1 changes nothing."""
    factor = factor.to(x)[:, None, None, None]
    return torch.lerp(gray(x).mean(dim=(2, 3), keepdim=True), x, factor).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Away from the gray image. x: (B, C, h, w); factor: (B,), not negative, 1 changes nothing. RGB only."""
    return torch.lerp(gray(x), x, factor.to(x)[:, None, None, None]).clamp_(0, 1) if x.shape[1] == 3 else x


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV, exactly. x: (B, C, h, w); shift: (B,), in turns, -0.5 to 0.5. RGB only.

    HSV's hue is a place on a hexagon: red at 0, green at 2, blue at -2 sixths of a turn. Everything here is in sixths
    times the chroma (largest channel less smallest), which needs no division and is well-defined for grays.

    The distance of a hue from red is then linear, green + blue - red + largest - 2 * smallest: as the hue leaves red,
    first the middle channel rises, then red falls, then the third channel rises, each by one chroma a sixth. Its sign
    is that of green - blue. Back from a place at distance a, red is smallest + 2 * chroma - a, the channel on the
    place's side smallest + a, the other one smallest + a - 2 * chroma, each within smallest and largest.
    """
    if x.shape[1] != 3:
        return x
    red, green, blue = x.split(1, dim=1)
    high = torch.maximum(green, blue).maximum(red)
    low = torch.minimum(green, blue).minimum(red)
    chroma = high - low
    place = (green + blue).sub_(red).add_(high).sub_(low, alpha=2).copysign_(green - blue)
    place.addcmul_(chroma, 6 * shift.to(x)[:, None, None, None])  # at most 6 sixths either way: one turn wraps it
    beyond = (3 * chroma).sub_(place.abs())  # negative where the place is past the half turn, on the other side
    side = chroma.copysign(place.mul_(beyond))
    beyond = beyond.abs_()  # 3 * chroma - a
    out = torch.empty_like(x)
    torch.clamp(beyond + (low - chroma), low, high, out=out[:, 0:1])
    rest = (high + chroma).sub_(beyond)
    torch.clamp(rest + side, low, high, out=out[:, 1:2])
    torch.clamp(rest.sub_(side), low, high, out=out[:, 2:3])
    return out


def grayscale(x: Tensor) -> Tensor:
    """Three equal channels. x: (B, C, h, w). RGB only."""
    return gray(x).expand_as(x) if x.shape[1] == 3 else x


def solarize(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert what is at or above ``threshold``. x: (B, C, h, w). BYOL's threshold is 0.5 (arXiv:2006.07733, App. B)."""
    return torch.where(x >= threshold, 1 - x, x)


@dataclass(frozen=True)
class Stages:
    """Colour jitter of B images as four places for a turn of the hue, and an affine map between any two of them.

    Brightness, contrast and saturation are all ``clamp(matrix @ pixel + to_mean @ mean of the pixels)``. So images that
    draw them in different orders still go through the same three batched products; contrast's mean of the gray image is
    the gray of the channels' means.

    Args:
        matrix: (B, 3, 3, 3), for RGB; (B, 3), one factor for all channels, otherwise.
        to_mean: (B, 3, C).
        turn: (B,), of the hue.
        hue_stage: int64 (B,) on the host, how many maps come before the hue; 4 for no turn.
    """

    matrix: Tensor
    to_mean: Tensor
    turn: Tensor
    hue_stage: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Stages:
        return Stages(self.matrix[rows], self.to_mean[rows], self.turn[rows], self.hue_stage[rows])

    def to(self, dtype: torch.dtype, device: torch.device) -> Stages:
        parts = (self.matrix, self.to_mean, self.turn)
        matrix, to_mean, turn = (part.to(dtype).to(device, non_blocking=True) for part in parts)
        return Stages(matrix, to_mean, turn, self.hue_stage)


def stages(factors: Tensor, order: Tensor, channels: int) -> Stages:
    """What :func:`jitter` needs, on the host in float64.

    Args:
        factors: float64 (B, 4) on the host: of brightness, contrast and saturation (1 changes nothing), and the turn of
            the hue (0 changes nothing).
        order: int64 (B, 4) on the host, permutations of 0 to 3: which of the four comes first, second and so on.
        channels: of the images.
    """
    kind = order[order != HUE].view(-1, 3)
    factor = factors.gather(1, kind)
    turn = factors[:, HUE]
    hue_stage = (order == HUE).to(torch.uint8).argmax(dim=1)
    share = factors.new_tensor(_LUMA if channels == 3 else (1 / channels,) * channels)
    to_mean = ((1 - factor) * (kind == CONTRAST))[:, :, None] * share
    if channels != 3:
        return Stages(factor.where(kind != SATURATION, 1.0), to_mean, turn, torch.full_like(hue_stage, 4))
    to_gray = ((1 - factor) * (kind == SATURATION))[:, :, None, None] * share
    matrix = torch.addcmul(to_gray, factor[:, :, None, None], torch.eye(3, dtype=factors.dtype))
    return Stages(matrix, to_mean, turn, hue_stage.where(turn != 0, 4))


def jitter(x: Tensor, plan: Stages) -> Tensor:
    """Brightness, contrast, saturation and hue, in each image's own order, as torchvision's ``ColorJitter`` draws it.

    Args:
        x: (B, C, h, w), contiguous. May be overwritten.
        plan: from :func:`stages`, moved to the device and dtype of ``x``. Images of one ``hue_stage`` side by side save
            a gather.
    """
    turns = torch.bincount(plan.hue_stage, minlength=5).tolist()
    for stage in range(4):
        if turns[stage] == len(x):
            x = hue(x, plan.turn)
        elif turns[stage] and (rows := chosen(plan.hue_stage == stage, x.device)) is not None:
            x[rows] = hue(x[rows], plan.turn[rows])
        if stage < 3:
            x = _affine(x, plan.matrix[:, stage], plan.to_mean[:, stage])
    return x


def _affine(x: Tensor, matrix: Tensor, to_mean: Tensor) -> Tensor:
    flat = x.flatten(2)
    offset = (flat.mean(dim=2) * to_mean).sum(dim=1)[:, None, None]
    if matrix.ndim == 1:
        return torch.addcmul(offset, flat, matrix[:, None, None]).clamp_(0, 1).view_as(x)
    return torch.baddbmm(offset, matrix, flat).clamp_(0, 1).view_as(x)
