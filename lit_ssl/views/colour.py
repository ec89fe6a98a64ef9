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

from .rows import chosen, sent

__all__ = [
    "Stages",
    "brightness",
    "contrast",
    "gray",
    "grayscale",
    "hue",
    "jitter",
    "saturation",
    "solarize",
    "stages",
]

LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def _shares(channels: int) -> tuple[float, ...]:
    """The share of each channel in gray."""
    return LUMA if channels == 3 else (1 / channels,) * channels


def gray(x: Tensor) -> Tensor:
    """(B, C, h, w) to (B, 1, h, w): the luma of RGB images, the mean of any other channels."""
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    red, green, blue = x.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


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
    """Turn the hue of HSV, exactly. x: (B, C, h, w); shift: (B,), in turns, -0.5 to 0.5. RGB only."""
    return _turned(x, *(part.to(x) for part in turns(shift))) if x.shape[1] == 3 else x


def turns(shift: Tensor) -> tuple[Tensor, Tensor]:
    """A turn of the hue as a matrix, (B, 3, 3), and what goes to every channel of largest + smallest channel, (B,).

    HSV's hue is a place on a hexagon with red, green and blue two sixths of a turn apart; largest and smallest channel
    stay what they are. With smallest 0 and largest 1, channels are 1 up to a sixth from their own place on the hexagon,
    0 from two sixths on, and linear between. So at every place at least one of the three is 0 and one is 1, which makes
    a turn linear: a channel takes from each channel 1 if the turn brings that to within a sixth of it, -1 if no nearer
    than two sixths, and linear between. Half of what the three lack in a sum of 1 is the share of largest + smallest,
    so that grays stay. What is below the smallest or above the largest is cut.
    """
    place = 2 * torch.arange(3, dtype=shift.dtype, device=shift.device)
    sixths = 6 * shift[:, None, None] + place - place[:, None]
    weight = (3 - 2 * torch.minimum(sixths.abs(), (6 - sixths.abs()).abs())).clamp(-1, 1)
    return weight, (1 - weight[:, 0].sum(dim=1)) / 2


def _turned(x: Tensor, weight: Tensor, share: Tensor) -> Tensor:
    high, low = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
    out = torch.bmm(weight, x.flatten(2)).view_as(x).addcmul_(high + low, share[:, None, None, None])
    return torch.clamp(out, low, high, out=out)


def grayscale(x: Tensor) -> Tensor:
    """Three equal channels. x: (B, C, h, w). RGB only."""
    return gray(x).expand_as(x) if x.shape[1] == 3 else x


def solarize(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert what is at or above ``threshold``. x: (B, C, h, w). BYOL's threshold is 0.5 (arXiv:2006.07733, App. B)."""
    return torch.where(x >= threshold, 1 - x, x)


@dataclass(frozen=True)
class Stages:
    """Colour jitter of B images as places for a turn of the hue, and an affine map between any two of them.

    Brightness, contrast and saturation are all ``clamp(matrix @ pixel + to_mean @ mean of the pixels)``. So images that
    draw them in different orders still go through the same three batched products; contrast's mean of the gray image is
    the gray of the channels' means.

    Args:
        matrix: (B, 3, 3, 3), for RGB; (B, 2), one factor for all channels, otherwise: saturation changes nothing there.
        to_mean: (B, 3 or 2, C).
        turn: (B, 3, 3) and (B,), of the hue, from :func:`turns`.
        hue_stage: int64 (B,) on the host, how many maps come before the hue; 4 for no turn.
    """

    matrix: Tensor
    to_mean: Tensor
    turn: tuple[Tensor, Tensor]
    hue_stage: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Stages:
        weight, share = self.turn
        return Stages(self.matrix[rows], self.to_mean[rows], (weight[rows], share[rows]), self.hue_stage[rows])

    def to(self, dtype: torch.dtype, device: torch.device) -> Stages:
        parts = (self.matrix, self.to_mean, *self.turn)
        matrix, to_mean, weight, share = (sent(part.to(dtype), device) for part in parts)
        return Stages(matrix, to_mean, (weight, share), self.hue_stage)


def stages(factors: Tensor, order: Tensor, channels: int) -> Stages:
    """What :func:`jitter` needs, on the host in float64.

    Args:
        factors: float64 (B, 4) on the host: of brightness, contrast and saturation (1 changes nothing), and the turn of
            the hue (0 changes nothing).
        order: int64 (B, 4) on the host, permutations of 0 to 3: which of the four comes first, second and so on.
        channels: of the images.
    """
    maps = order != HUE if channels == 3 else (order != HUE) & (order != SATURATION)
    kind = order[maps].view(-1, 3 if channels == 3 else 2)
    factor = factors.gather(1, kind)
    turn = turns(factors[:, HUE])
    hue_stage = (order == HUE).to(torch.uint8).argmax(dim=1)
    share = factors.new_tensor(_shares(channels))
    to_mean = ((1 - factor) * (kind == CONTRAST))[:, :, None] * share
    if channels != 3:
        return Stages(factor, to_mean, turn, torch.full_like(hue_stage, 4))
    to_gray = ((1 - factor) * (kind == SATURATION))[:, :, None, None] * share
    matrix = torch.addcmul(to_gray, factor[:, :, None, None], torch.eye(3, dtype=factors.dtype))
    return Stages(matrix, to_mean, turn, hue_stage.where(factors[:, HUE] != 0, 4))


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
            x = _turned(x, *plan.turn)
        elif turns[stage] and (rows := chosen((plan.hue_stage == stage).tolist(), x.device)) is not None:
            x[rows] = _turned(x[rows], *(part[rows] for part in plan.turn))
        if stage < plan.matrix.shape[1]:
            x = _affine(x, plan.matrix[:, stage], plan.to_mean[:, stage])
    return x


def _affine(x: Tensor, matrix: Tensor, to_mean: Tensor) -> Tensor:
    flat = x.flatten(2)
    offset = torch.bmm(to_mean[:, None], flat.mean(dim=2, keepdim=True))
    if matrix.ndim == 1:
        return torch.addcmul(offset, flat, matrix[:, None, None]).clamp_(0, 1).view_as(x)
    return torch.baddbmm(offset, matrix, flat).clamp_(0, 1).view_as(x)
