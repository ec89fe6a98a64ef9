"""The patches that an image is cut into, and which of them an encoder sees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_ssl.random import uniform
from lit_ssl.spec import ImageSpec

__all__ = ["PatchGrid", "even_patch", "mask_of", "random_keep", "visible_tokens"]


@dataclass(frozen=True)
class PatchGrid:
    """An image of ``size`` as L = rows x columns patches, counted row by row from the top left.

    Attributes:
        size: (height, width) of the image in pixels.
        patch: (height, width) of a patch in pixels; divides ``size``.
        channels: of the image.
    """

    size: tuple[int, int]
    patch: tuple[int, int]
    channels: int

    def __post_init__(self) -> None:
        if any(side % patch for side, patch in zip(self.size, self.patch, strict=True)):
            raise ValueError(f"patches of {self.patch} pixels do not divide an image of {self.size}")

    @property
    def rows(self) -> int:
        return self.size[0] // self.patch[0]

    @property
    def columns(self) -> int:
        return self.size[1] // self.patch[1]

    @property
    def tokens(self) -> int:
        """L, the number of patches."""
        return self.rows * self.columns

    @property
    def values(self) -> int:
        """Numbers in one patch: height x width x channels."""
        return math.prod(self.patch) * self.channels

    def patchify(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to patches (B, L, height * width * C), the channel running fastest."""
        b, (p, q) = len(x), self.patch
        x = x.reshape(b, self.channels, self.rows, p, self.columns, q)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(b, self.tokens, self.values)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """The inverse of :meth:`patchify`."""
        b, (p, q) = len(patches), self.patch
        x = patches.reshape(b, self.rows, self.columns, p, q, self.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(b, self.channels, *self.size)

    def pixels(self, mask: Tensor) -> Tensor:
        """A value for each patch (B, L) to one for each pixel (B, 1, H, W)."""
        b, (p, q) = len(mask), self.patch
        mask = mask.reshape(b, 1, self.rows, 1, self.columns, 1)
        return mask.expand(b, 1, self.rows, p, self.columns, q).reshape(b, 1, *self.size)


def even_patch(spec: ImageSpec) -> int | None:
    """The patch size that leaves closest to 8, and from 4 to 16, whole patches along the shorter side; None if none."""
    side, common = min(spec.size), math.gcd(*spec.size)
    fitting = [p for p in range(1, common + 1) if common % p == 0 and 4 <= side / p <= 16]
    return min(fitting, key=lambda p: abs(math.log(8 * p / side)), default=None)


def visible_tokens(tokens: int, mask_ratio: float) -> int:
    """How many of ``tokens`` a mask leaves: ``tokens * (1 - mask_ratio)``, rounded down, at least 1, never all.

    Raises:
        ValueError: fewer than 2 tokens, of which none could be hidden and another seen.
    """
    if tokens < 2:
        raise ValueError(f"masking needs at least 2 patches an image, got {tokens}; choose smaller patches")
    # 10 * (1 - 0.9) is a little below 1
    return min(max(math.floor(tokens * (1 - mask_ratio) + 1e-9), 1), tokens - 1)


def random_keep(key: Tensor, name: str, tokens: int, visible: int, *, ordered: bool = False) -> Tensor:
    """Which tokens stay visible: int64 (B, visible), each row a random subset of range(tokens), on the key's device.

    The order of noise decides, as in the masked autoencoder (He et al. 2021, arXiv:2111.06377, section 3).

    Args:
        key: int64 (B,); a row's subset is a pure function of its key and ``name``.
        name: of the draw.
        tokens: to choose from.
        visible: how many stay.
        ordered: in the order of the noise, so that the first of them are a random subset of them, alike on every
            device. Without it their order follows their places in one way or another.
    """
    noise = uniform(key, name, (tokens,))
    return noise.topk(visible, dim=1, largest=False, sorted=ordered).indices  # unordered in a fourth of a sort's time


def mask_of(keep: Tensor, tokens: int) -> Tensor:
    """bool (B, tokens), True for each token that is not among ``keep`` (B, visible)."""
    mask = torch.ones(len(keep), tokens, dtype=torch.bool, device=keep.device)
    return mask.scatter(1, keep, False)
